"""libvirt's side: hosts, domain XML, and how a domain's disks and its guest are reached."""
