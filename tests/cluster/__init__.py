"""A cluster's store, on a PostgreSQL and a SeaweedFS that are started for it."""
