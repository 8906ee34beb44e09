from rest_framework.routers import SimpleRouter

from django_app.views import TicketViewSet

router = SimpleRouter(trailing_slash=False)
router.register("tickets", TicketViewSet)
urlpatterns = router.urls
