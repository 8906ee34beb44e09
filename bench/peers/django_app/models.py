from django.db import models
from wording import message_id


class User(models.Model):
    name = models.CharField(max_length=100)
    email = models.EmailField(unique=True)

    class Meta:
        db_table = "users"
        ordering = ("id",)


class Project(models.Model):
    name = models.CharField(max_length=100, unique=True)

    class Meta:
        db_table = "projects"


class Ticket(models.Model):
    class Status(models.TextChoices):
        OPEN = "open"
        IN_PROGRESS = "in progress"
        CLOSED = "closed"

    title = models.CharField(max_length=200)
    description = models.TextField(max_length=10_000, null=True, blank=True)
    project = models.ForeignKey(Project, models.PROTECT, db_index=False)
    status = models.CharField(max_length=20, choices=Status.choices, db_index=True)
    assignees = models.ManyToManyField(User, blank=True, db_table="assignments")
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "tickets"
        indexes = (models.Index(fields=("project", "status"), name="tickets_project_status"),)


class History(models.Model):
    ticket = models.ForeignKey(Ticket, models.PROTECT)
    changed_at = models.DateTimeField()
    changes = models.JSONField()

    class Meta:
        db_table = "history"


class Email(models.Model):
    ticket = models.ForeignKey(Ticket, models.PROTECT)
    user_id = models.BigIntegerField()
    subject = models.TextField()
    body = models.TextField()
    message_id = models.CharField(max_length=200, default=message_id, unique=True)
    state = models.CharField(max_length=10, default="queued", db_index=True)
    attempts = models.IntegerField(default=0)
    created_at = models.DateTimeField()
    next_attempt_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "emails"
