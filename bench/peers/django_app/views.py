import wording
from django.db import transaction
from django.utils import timezone
from django_filters.rest_framework import ChoiceFilter, FilterSet, NumberFilter
from rest_framework import mixins, status, viewsets
from rest_framework.pagination import CursorPagination
from rest_framework.response import Response

from django_app.models import Email, History, Ticket
from django_app.serializers import NewTicketSerializer, StatusSerializer, TicketSerializer


class TicketFilter(FilterSet):
    project_id = NumberFilter()
    status = ChoiceFilter(choices=Ticket.Status.choices)

    class Meta:
        model = Ticket
        fields = ("project_id", "status")


class LinkHeaderPagination(CursorPagination):
    page_size = 50
    ordering = "-id"

    def get_paginated_response(self, data):
        url = self.get_next_link()
        return Response(data, headers={"Link": f'<{url}>; rel="next"'} if url else {})


class TicketViewSet(mixins.RetrieveModelMixin, mixins.ListModelMixin, viewsets.GenericViewSet):
    queryset = Ticket.objects.prefetch_related("assignees")
    serializer_class = TicketSerializer
    pagination_class = LinkHeaderPagination
    filterset_class = TicketFilter
    search_fields = ("title", "description")

    @transaction.atomic
    def create(self, request):
        serializer = NewTicketSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        now = timezone.now()
        ticket = serializer.save(created_at=now)
        self.queue_mail(ticket, now)
        headers = {"Location": f"/tickets/{ticket.pk}"}
        return Response(TicketSerializer(ticket).data, status.HTTP_201_CREATED, headers=headers)

    @transaction.atomic
    def partial_update(self, request, pk):
        ticket = self.get_object()
        before = ticket.status
        serializer = StatusSerializer(ticket, data=request.data)
        serializer.is_valid(raise_exception=True)
        if serializer.validated_data["status"] != before:
            now = timezone.now()
            serializer.save(updated_at=now)
            changes = {"status": {"from": before, "to": ticket.status}}
            History.objects.create(ticket=ticket, changed_at=now, changes=changes)
            self.queue_mail(ticket, now, before)
        return Response(TicketSerializer(ticket).data)

    def queue_mail(self, ticket, now, before=None):
        assignees = list(ticket.assignees.all())
        names = [user.name for user in assignees]
        body = wording.body(
            ticket.pk,
            ticket.title,
            ticket.status,
            names,
            ticket.description,
            ticket.project.name,
            before,
        )
        Email.objects.bulk_create(
            Email(
                ticket=ticket,
                user_id=user.pk,
                subject=wording.subject(ticket.pk, ticket.title),
                body=body,
                created_at=now,
                next_attempt_at=now,
            )
            for user in assignees
        )
