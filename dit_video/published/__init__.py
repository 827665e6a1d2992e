"""Published models (DiT, SD3, Wan, Latte, VAEs): recognition, parameter names, configs and schedulers."""
