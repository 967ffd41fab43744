"""Control groups as they are on this machine: found (`detect`), made (`perform`), watched and taken down (`live`)."""
