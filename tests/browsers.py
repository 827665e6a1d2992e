"""What tests of pages ask a browser."""


def violations(page) -> list[str]:
    """What axe finds that people who hear or type a page could not use."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]
