"""When jobs run by themselves: units of systemd, or lines of cron where there is no systemd."""
