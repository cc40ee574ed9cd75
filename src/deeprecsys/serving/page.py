def live_page() -> bytes:
    return b"<h1>live</h1>"


def plotly_js() -> bytes:
    return b""
