"""The disks of a pull session over HTTPS, for data movers outside the host; it needs aiohttp (vbackup[http])."""
