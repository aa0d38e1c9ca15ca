"""The newsroom's desk: write, then "Send email update"."""

from __future__ import annotations

from django.contrib import admin

from mailengine.admin import SendEmailUpdateMixin

from .models import Article, Issue, Subscriber


class ArticleInline(admin.TabularInline):
    """The articles of an issue, each with a link to its own page."""

    model = Article
    fields = ("headline", "published_at")
    show_change_link = True
    extra = 0


@admin.register(Issue)
class IssueAdmin(SendEmailUpdateMixin, admin.ModelAdmin):
    """Issues, newest first."""

    list_display = ("title", "date")
    search_fields = ("title",)
    date_hierarchy = "date"
    inlines = (ArticleInline,)


@admin.register(Article)
class ArticleAdmin(SendEmailUpdateMixin, admin.ModelAdmin):
    """Articles, newest first."""

    list_display = ("headline", "issue", "published_at")
    list_filter = ("issue",)
    list_select_related = ("issue",)
    search_fields = ("headline", "body")
    date_hierarchy = "published_at"


@admin.register(Subscriber)
class SubscriberAdmin(admin.ModelAdmin):
    """Subscribers by address."""

    list_display = ("email", "name", "is_active", "joined_at")
    list_filter = ("is_active",)
    search_fields = ("=email", "name")
