"""Tests beside podman, buildah, skopeo, Docker and containers/storage itself."""
