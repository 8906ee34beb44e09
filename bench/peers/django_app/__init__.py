"""The same API in Django REST framework; served by gunicorn.

After the tutorial of Django REST framework (serializers, viewsets and routers), its pages on
filtering (django-filter, SearchFilter) and pagination (CursorPagination, and the example with
a Link header), and Django's pages "SQLite notes", "Deployment checklist" and "How to use Django
with Gunicorn".

The same as the tracker: the fields, the validation, WAL with synchronous = FULL, and that a
write is one transaction, begun as a writer, with history and one queued mail per assignee.
"""
