"""Tell people, once: pings, webhooks, mail, and whatever else apprise knows."""
