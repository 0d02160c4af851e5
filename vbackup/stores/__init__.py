"""Where copies lie: objects in a directory, on a host reached by ssh, in a bucket. Each kind is a Store."""
