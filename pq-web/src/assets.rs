//! The style sheet and the scripts, embedded in the binary.

use std::sync::OnceLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("../assets/style.css");
const SCRIPT: &str = include_str!("../assets/dashboard.js");
const HTMX: &str = include_str!("../assets/vendor/htmx.min.js");
const HTMX_SSE: &str = include_str!("../assets/vendor/sse.min.js");
const LICENCE: &str = include_str!("../assets/vendor/LICENSE");
const ICON: &str = include_str!("../assets/icon.svg");

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Serves an asset. Its URL contains [`version`], so a browser can keep it.
pub(crate) async fn serve(Path(name): Path<String>) -> Response {
    let (text, kind) = match name.as_str() {
        "style.css" => (STYLE, "text/css; charset=utf-8"),
        "dashboard.js" => (SCRIPT, JAVASCRIPT),
        "htmx.js" => (HTMX, JAVASCRIPT),
        "sse.js" => (HTMX_SSE, JAVASCRIPT),
        "LICENSE" => (LICENCE, "text/plain; charset=utf-8"),
        "icon.svg" => (ICON, "image/svg+xml"),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text).into_response()
}

/// Returns a text that changes when an asset does.
pub(crate) fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let all = [STYLE, SCRIPT, HTMX, HTMX_SSE, ICON].concat();
        Sha256::digest(all).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    })
}
