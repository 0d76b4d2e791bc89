"""Side by side with podman, buildah, skopeo and containers/storage itself."""
