"""The control plane over REST: everything under `/v1`. Errors are raised as ours; the HTTP edge gives them a status."""

from infaas_controller.api.admin.router import Workers, admin_router

__all__ = ["Workers", "admin_router"]
