from django.core.validators import RegexValidator
from rest_framework import serializers

from django_app.models import Project, Ticket, User


class UserSerializer(serializers.ModelSerializer):
    class Meta:
        model = User
        fields = ("id", "name", "email")


class TicketSerializer(serializers.ModelSerializer):
    title = serializers.CharField(
        max_length=200, validators=[RegexValidator(r"^[^\x00-\x1f\x7f-\x9f]*\Z")]
    )
    project_id = serializers.PrimaryKeyRelatedField(
        source="project", queryset=Project.objects.all(), pk_field=serializers.IntegerField()
    )
    assignees = UserSerializer(many=True, read_only=True)

    class Meta:
        model = Ticket
        fields = (
            "id",
            "title",
            "description",
            "project_id",
            "status",
            "assignees",
            "created_at",
            "updated_at",
        )
        read_only_fields = ("created_at", "updated_at")


class NewTicketSerializer(TicketSerializer):
    """The same, with assignees given by their ids."""

    assignees = serializers.PrimaryKeyRelatedField(
        many=True, queryset=User.objects.all(), default=list
    )


class StatusSerializer(serializers.ModelSerializer):
    class Meta:
        model = Ticket
        fields = ("status",)
