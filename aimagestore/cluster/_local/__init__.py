"""PostgreSQL and SeaweedFS on this machine, to try a cluster's store on and to test it with."""
