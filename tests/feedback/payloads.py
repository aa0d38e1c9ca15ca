"""What ESPs post, in the shapes their documentation shows, and how they show that it is they who post it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from django.test import Client

SECRETS = ["esp:new-secret", "esp:old-secret"]
MAILGUN_KEY = "key-of-mailgun"
DELIVERED_AT = 1_763_700_000.25


def post(esp: str, message_id: str, *, secret: str | None = SECRETS[0], client: Client | None = None, **change: Any):
    """The answer to a webhook of this ESP that says that our message was delivered."""
    return send(request(esp, message_id, **change), secret=secret, client=client)


def request(esp: str, message_id: str, **change: Any) -> dict[str, Any]:
    return {"path": f"/anymail/{esp}/tracking/", **REQUESTS[esp](message_id, **change)}


def send(webhook: dict[str, Any], *, secret: str | None = SECRETS[0], client: Client | None = None):
    """The answer to this request, made with this user and password; None: without any."""
    headers = dict(webhook.get("headers", {}))
    if secret is not None:
        headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
    client = client or Client()
    path, data, content_type = webhook["path"], webhook["data"], webhook["content_type"]
    return client.post(path, data=data, content_type=content_type, headers=headers)


def signature_of_mailgun(timestamp: str, token: str, *, key: str = MAILGUN_KEY) -> str:
    """https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/securing-webhooks"""
    return hmac.new(key.encode(), f"{timestamp}{token}".encode(), hashlib.sha256).hexdigest()


def _json(content: Any, **headers: str) -> dict[str, Any]:
    return {"data": json.dumps(content), "content_type": "application/json", "headers": headers}


def _mailgun(message_id: str, *, event: str = "delivered", key: str = MAILGUN_KEY) -> dict[str, Any]:
    timestamp, token = str(int(DELIVERED_AT)), "47cbb3f8a1e2c5d9b60d7f4e8a3c1b5d92f06e7a4c8b3d1f5e"
    return _json(
        {
            "signature": {
                "timestamp": timestamp,
                "token": token,
                "signature": signature_of_mailgun(timestamp, token, key=key),
            },
            "event-data": {
                "id": "CPgfbmQMTCKtHW6uIWtuVe",
                "timestamp": DELIVERED_AT,
                "log-level": "info",
                "event": event,
                "delivery-status": {
                    "tls": True,
                    "mx-host": "smtp-in.example.org",
                    "code": 250,
                    "description": "",
                    "session-seconds": 0.4331989288330078,
                    "utf8": True,
                    "attempt-no": 1,
                    "message": "OK",
                    "certificate-verified": True,
                },
                "flags": {
                    "is-routed": False,
                    "is-authenticated": True,
                    "is-system-test": False,
                    "is-test-mode": False,
                },
                "envelope": {
                    "transport": "smtp",
                    "sender": "desk@example.org",
                    "sending-ip": "209.61.154.250",
                    "targets": "ann@example.org",
                },
                "message": {
                    "headers": {
                        "to": "ann@example.org",
                        "message-id": "20251121043952.1.9C7A@example.org",
                        "from": "desk@example.org",
                        "subject": "Hello",
                    },
                    "attachments": [],
                    "size": 651,
                },
                "recipient": "ann@example.org",
                "recipient-domain": "example.org",
                "storage": {"url": "https://se.api.mailgun.net/v3/domains/example.org/messages/AA", "key": "AA"},
                "campaigns": [],
                "tags": [],
                "user-variables": {"mailengine_id": message_id},
            },
        }
    )


def _brevo(message_id: str) -> dict[str, Any]:
    """https://developers.brevo.com/docs/transactional-webhooks"""
    return _json(
        {
            "event": "delivered",
            "email": "ann@example.org",
            "id": 26224,
            "date": "2025-11-21 05:40:00",
            "ts": 1763700000,
            "ts_event": 1763700000,
            "ts_epoch": 1763700000000,
            "message-id": "<202511210440.82119544812@smtp-relay.mailin.fr>",
            "subject": "Hello",
            "X-Mailin-custom": json.dumps({"mailengine_id": message_id}),
            "sending_ip": "203.0.113.7",
            "tags": [],
        }
    )


def _mailjet(message_id: str) -> dict[str, Any]:
    """https://dev.mailjet.com/email/guides/webhooks/"""
    return _json(
        [
            {
                "event": "sent",
                "time": 1763700000,
                "MessageID": 19421777835146490,
                "Message_GUID": "1ab23cd4-e567-8901-2345-6789f0gh1i2j",
                "email": "ann@example.org",
                "mj_campaign_id": 7257,
                "mj_contact_id": 4,
                "customcampaign": "",
                "mj_message_id": "19421777835146490",
                "smtp_reply": "sent (250 2.0.0 OK)",
                "CustomID": "",
                "Payload": json.dumps({"mailengine_id": message_id}),
            }
        ]
    )


def _postmark(message_id: str) -> dict[str, Any]:
    return _json(
        {
            "RecordType": "Delivery",
            "ServerID": 23,
            "MessageStream": "outbound",
            "MessageID": "00000000-0000-4000-8000-000000000001",
            "Recipient": "ann@example.org",
            "Tag": "",
            "DeliveredAt": "2025-11-21T04:40:00Z",
            "Details": "smtp;250 2.0.0 OK",
            "Metadata": {"mailengine_id": message_id},
        }
    )


def _sendgrid(message_id: str) -> dict[str, Any]:
    return _json(
        [
            {
                "email": "bob@example.org",
                "timestamp": 1763700000,
                "smtp-id": "<14c5d75ce93.dfd.64b469@ismtpd-555>",
                "event": "open",
                "sg_event_id": "sg_event_id_of_somebody_else",
                "sg_message_id": "14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0",
                "useragent": "Mozilla/5.0",
                "ip": "203.0.113.7",
            },
            {
                "email": "ann@example.org",
                "timestamp": 1763700000,
                "smtp-id": "<14c5d75ce93.dfd.64b469@ismtpd-555>",
                "event": "processed",
                "category": [],
                "sg_event_id": "rbtnWrG1DVDGGGFHFyun0A",
                "sg_message_id": "14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.1",
                "anymail_id": "f6d1b6a2-95d5-4d0a-8f43-0f0b2c6d8e3a",
                "mailengine_id": message_id,
            },
        ]
    )


def _resend(message_id: str) -> dict[str, Any]:
    return _json(
        {
            "type": "email.delivered",
            "created_at": "2025-11-21T04:40:00.126Z",
            "data": {
                "created_at": "2025-11-21T04:39:58.894719+00:00",
                "email_id": "56761188-7520-42d8-8898-ff6fc54ce618",
                "from": "desk@example.org",
                "to": ["ann@example.org"],
                "subject": "Hello",
                "headers": [
                    {"name": "X-Mailengine-Id", "value": message_id},
                    {"name": "X-Metadata", "value": json.dumps({"mailengine_id": message_id})},
                ],
            },
        },
        **{"svix-id": "msg_2W2D3qXLS5fOaPja1GDg7rF2CwB", "svix-timestamp": "1763700000"},
    )


def _amazon_ses(message_id: str) -> dict[str, Any]:
    event = {
        "eventType": "Delivery",
        "mail": {
            "timestamp": "2025-11-21T04:39:58.237Z",
            "source": "desk@example.org",
            "sourceArn": "arn:aws:ses:eu-west-1:888888888888:identity/example.org",
            "sendingAccountId": "888888888888",
            "messageId": "0102019aa3c5e5f6-9a483358-9170-4cb4-a269-f5dcdf415321-000000",
            "destination": ["ann@example.org"],
            "headersTruncated": False,
            "headers": [
                {"name": "From", "value": "desk@example.org"},
                {"name": "To", "value": "ann@example.org"},
                {"name": "Subject", "value": "Hello"},
                {"name": "X-Mailengine-Id", "value": message_id},
                {"name": "X-Metadata", "value": json.dumps({"mailengine_id": message_id})},
            ],
            "tags": {"ses:configuration-set": ["events"]},
        },
        "delivery": {
            "timestamp": "2025-11-21T04:40:00.237Z",
            "processingTimeMillis": 546,
            "recipients": ["ann@example.org"],
            "smtpResponse": "250 ok",
            "reportingMTA": "a8-70.smtp-out.amazonses.com",
        },
    }
    notification = {
        "Type": "Notification",
        "MessageId": "19ba9823-d7f2-53c1-860e-cb10e0d13dfc",
        "TopicArn": "arn:aws:sns:eu-west-1:888888888888:mail",
        "Subject": "Amazon SES Email Event Notification",
        "Message": json.dumps(event) + "\n",
        "Timestamp": "2025-11-21T04:40:00.675Z",
        "SignatureVersion": "1",
        "Signature": "EXAMPLE==",
        "SigningCertURL": "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-0.pem",
        "UnsubscribeURL": "https://sns.eu-west-1.amazonaws.com/?Action=Unsubscribe",
    }
    return {
        "data": json.dumps(notification),
        "content_type": "text/plain; charset=UTF-8",
        "headers": {
            "x-amz-sns-message-type": notification["Type"],
            "x-amz-sns-message-id": notification["MessageId"],
        },
    }


REQUESTS = {
    "amazon_ses": _amazon_ses,
    "brevo": _brevo,
    "mailgun": _mailgun,
    "mailjet": _mailjet,
    "postmark": _postmark,
    "resend": _resend,
    "sendgrid": _sendgrid,
}
