//! Checks every request: its host, its user, and the form that it sends. Draws pages, and sets the headers of
//! responses.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, OriginalUri, Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, COOKIE, HOST, HeaderName, ORIGIN, SET_COOKIE, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use tokio::time::timeout;

use crate::access::{Access, Credentials, Role, User};
use crate::dashboard::App;
use crate::html::encode;
use crate::page::{Page, Visit};
use crate::pages;
use crate::session::SessionId;

/// The fields of a form or of a query, in order. A name can repeat.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads the fields of a query or of a form's body.
    pub(crate) fn parse(encoded: &str) -> Self {
        let decode =
            |word: &str| percent_decode_str(&word.replace('+', " ")).decode_utf8_lossy().into_owned();
        let fields = encoded.split('&').filter(|field| !field.is_empty()).map(|field| {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            (decode(name), decode(value))
        });
        Self(fields.collect())
    }

    /// Returns the first value of a field, or an empty text.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// Returns all values of a field.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The names of the cookies: of the session, and of the result of the action before.
///
/// A browser sends cookies to all ports of a host. So the name has the port, and dashboards on two ports of this
/// machine do not replace each other's.
struct CookieNames {
    session: String,
    notice: String,
}

impl CookieNames {
    fn of(headers: &HeaderMap) -> Self {
        let host = header(headers, HOST.as_str()).unwrap_or_default();
        let port = host.rsplit_once(':').map(|(_, port)| port);
        let port = port.filter(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
        let suffix = port.map(|port| format!("_{port}")).unwrap_or_default();
        Self { session: format!("pq_session{suffix}"), notice: format!("pq_notice{suffix}") }
    }
}

/// The longest notice, in characters.
const MAX_NOTICE_CHARS: usize = 600;

/// The largest form of an operator: a payload of the default limit, encoded.
const MAX_FORM_BYTES: usize = 4 << 20;

/// The largest form of anybody else.
const MAX_SMALL_FORM_BYTES: usize = 8 << 10;

/// The most fields of a form.
const MAX_FIELDS: usize = 2_000;

/// How long a client may take to send a form.
const FORM_TIMEOUT: Duration = Duration::from_secs(30);

/// The forms that change nothing in the database, so that viewers can send them.
const FORMS_OF_VIEWERS: [&str; 2] = ["/logout", "/health"];

/// The pause before a refused login is answered.
const REFUSAL_DELAY: Duration = Duration::from_millis(500);

/// The response to an action: the browser continues with a page, which shows the notice.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    /// The path of the page.
    pub(crate) path: String,
    pub(crate) notice: String,
}

impl IntoResponse for Done {
    fn into_response(self) -> Response {
        let mut response = StatusCode::SEE_OTHER.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// A request that is not answered with what it asks for.
struct Refused {
    status: StatusCode,
    title: &'static str,
    reason: &'static str,
}

impl Refused {
    fn forbidden(reason: &'static str) -> Self {
        Self { status: StatusCode::FORBIDDEN, title: "Refused", reason }
    }

    fn form_token() -> Self {
        Self::forbidden(
            "This form is not one of this dashboard, or it is out of date. Go back, reload the page and try again.",
        )
    }

    fn page(&self) -> Page {
        Page::error(self.status, self.title, self.reason)
    }
}

/// The middleware of all pages and actions.
pub(crate) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let secure = header(request.headers(), "x-forwarded-proto") == Some("https");
    let authorizes = request.headers().contains_key(AUTHORIZATION);
    let names = CookieNames::of(request.headers());
    let session = cookie(request.headers(), &names.session).and_then(|value| SessionId::from_cookie(&value));
    let checked = check_local(&app.access, &request).and_then(|()| check_origin(&request));
    let Some(id) = session.clone().or_else(SessionId::draw) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let mut cookies = Vec::new();
    // A form of another site comes without the cookie, and its response must not replace the session.
    if session.is_none() && checked.is_ok() {
        cookies.push((&names.session, id.as_str().to_owned()));
    }
    let mut visit = stranger(&app, &request, &id, &names);
    let admitted = match checked {
        Ok(()) => admit(&app, request, &id, session.is_some(), &mut visit).await,
        Err(refused) => Admitted::No(refused.page()),
    };
    let mut response = match admitted {
        Admitted::As(request) => next.run(*request).await,
        Admitted::LoggedIn(new) => {
            cookies.push((&names.session, new.as_str().to_owned()));
            Done { path: visit.path.clone(), notice: String::new() }.into_response()
        }
        Admitted::No(page) => page.into_response(),
    };
    if let Some(Done { path, notice }) = response.extensions_mut().remove() {
        if let Ok(location) = HeaderValue::from_str(&visit.url(&path)) {
            response.headers_mut().insert("location", location);
        }
        if !notice.is_empty() {
            let notice = notice.chars().take(MAX_NOTICE_CHARS).collect::<String>();
            cookies.push((&names.notice, encode(&notice)));
        }
    }
    if let Some(page) = response.extensions_mut().remove::<Page>() {
        if visit.notice.is_some() {
            cookies.push((&names.notice, String::new()));
        }
        response.headers_mut().insert("content-type", HeaderValue::from_static("text/html; charset=utf-8"));
        *response.body_mut() = Body::from(page.document(&visit).into_string());
    }
    if response.status() == StatusCode::UNAUTHORIZED && authorizes {
        let scheme = HeaderValue::from_static("Basic realm=\"pq\", charset=\"UTF-8\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    }
    finish(&mut response, &visit, &cookies, secure);
    response
}

enum Admitted {
    As(Box<Request>),
    /// The login was correct. This is the id of its session, and the visit has the path to continue with.
    LoggedIn(SessionId),
    No(Page),
}

/// Returns the visit of somebody who is not known yet.
fn stranger(app: &App, request: &Request, id: &SessionId, names: &CookieNames) -> Visit {
    let path = match *request.method() {
        Method::GET | Method::HEAD => request.uri().path_and_query().map_or("/", |path| path.as_str()),
        // The page of an action cannot be requested again.
        _ => "/",
    };
    let whole = request.extensions().get::<OriginalUri>().map_or(request.uri().path(), |uri| uri.path());
    let inner = request.uri().path();
    Visit {
        base: whole.strip_suffix(inner).unwrap_or(whole).trim_end_matches('/').to_owned(),
        path: page_path(path).to_owned(),
        user: User { name: String::new(), role: Role::Viewer },
        can_act: false,
        session: id.clone(),
        form_token: app.sessions.form_token(id).unwrap_or_default(),
        logged_in: false,
        notice: cookie(request.headers(), &names.notice).filter(|notice| !notice.is_empty()),
    }
}

/// Returns a path that a link or a login may lead to: this one, or the first page.
///
/// A browser reads a path that begins with two slashes, or with a backslash or a tab between, as one of another host.
fn page_path(path: &str) -> &str {
    let is_local = path.starts_with('/')
        && !path[1..].starts_with(['/', '\\'])
        && !path.contains(|c: char| c.is_control());
    let is_page = !["/login", "/logout"].contains(&path);
    if is_local && is_page { path } else { "/" }
}

/// Decides whether a request is answered, and completes the visit.
///
/// The form is read last, so that a stranger cannot make the dashboard read a large one.
async fn admit(app: &App, request: Request, id: &SessionId, known: bool, visit: &mut Visit) -> Admitted {
    let is_post = request.method() == Method::POST;
    if is_post && !known {
        return Admitted::No(Refused::form_token().page());
    }
    let path = request.uri().path().to_owned();
    let user = identify(app, &request, id);
    let (mut parts, body) = request.into_parts();
    if let (Access::Login(credentials), true, "/login") = (&app.access, is_post, path.as_str()) {
        return match read_form(app, id, body, MAX_SMALL_FORM_BYTES).await {
            Ok(fields) => log_in(app, credentials, &fields, visit).await,
            Err(refused) => Admitted::No(refused.page()),
        };
    }
    let Some((user, logged_in)) = user else {
        if parts.headers.contains_key(AUTHORIZATION) {
            tokio::time::sleep(REFUSAL_DELAY).await;
        }
        return Admitted::No(match &app.access {
            Access::Login(_) => pages::login::page(visit, None),
            _ => Refused {
                status: StatusCode::UNAUTHORIZED,
                title: "Not logged in",
                reason: "The request names no user. The proxy or the application in front of this dashboard must add one.",
            }
            .page(),
        });
    };
    visit.can_act = user.role == Role::Operator && app.operator.is_some();
    (visit.user, visit.logged_in) = (user, logged_in);
    // Names of queues are in the query of a form, because browsers change line breaks in its fields.
    let mut fields = Fields::parse(parts.uri.query().unwrap_or_default());
    if is_post {
        let of_viewers = FORMS_OF_VIEWERS.contains(&path.as_str());
        if !of_viewers && !visit.can_act {
            return Admitted::No(
                Refused::forbidden(if app.operator.is_none() {
                    "This dashboard is read-only: it was started without actions."
                } else {
                    "Only operators may do this."
                })
                .page(),
            );
        }
        let limit = if of_viewers { MAX_SMALL_FORM_BYTES } else { MAX_FORM_BYTES };
        match read_form(app, id, body, limit).await {
            Ok(mut form) => fields.0.append(&mut form.0),
            Err(refused) => return Admitted::No(refused.page()),
        }
    }
    if is_post && path == "/logout" {
        app.sessions.log_out(id);
        visit.user.name.clear();
        (visit.can_act, visit.logged_in) = (false, false);
        return Admitted::No(pages::login::page(visit, Some("You are logged out.")));
    }
    parts.extensions.insert(visit.clone());
    parts.extensions.insert(Arc::new(fields));
    Admitted::As(Box::new(Request::from_parts(parts, Body::empty())))
}

/// Reads a form of this session.
async fn read_form(app: &App, id: &SessionId, body: Body, max_bytes: usize) -> Result<Fields, Refused> {
    let Ok(body) = timeout(FORM_TIMEOUT, to_bytes(body, max_bytes)).await else {
        return Err(Refused {
            status: StatusCode::REQUEST_TIMEOUT,
            title: "Too slow",
            reason: "The form did not arrive in time.",
        });
    };
    let fields = body.ok().filter(|body| body.iter().filter(|byte| **byte == b'&').count() < MAX_FIELDS);
    let Some(fields) = fields else {
        return Err(Refused {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            title: "Too large",
            reason: "The form is larger than this dashboard reads.",
        });
    };
    let fields = Fields::parse(&String::from_utf8_lossy(&fields));
    if app.sessions.is_form_token(id, fields.get("form_token")) {
        Ok(fields)
    } else {
        Err(Refused::form_token())
    }
}

async fn log_in(app: &App, credentials: &Credentials, fields: &Fields, visit: &mut Visit) -> Admitted {
    visit.path = page_path(fields.get("next")).to_owned();
    let Some(user) = credentials.find(None, fields.get("secret")) else {
        tokio::time::sleep(REFUSAL_DELAY).await;
        return Admitted::No(pages::login::page(visit, Some("This token is not known.")));
    };
    let Some(new) = SessionId::draw() else {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return Admitted::No(Page::error(status, "No login", "The system has no random numbers."));
    };
    app.sessions.log_in(new.clone(), user.clone());
    Admitted::LoggedIn(new)
}

/// Returns who sends a request, and whether by the login form.
fn identify(app: &App, request: &Request, id: &SessionId) -> Option<(User, bool)> {
    match &app.access {
        Access::Loopback => Some((User { name: "local".to_owned(), role: Role::Operator }, false)),
        Access::Login(credentials) => app
            .sessions
            .user(id)
            .map(|user| (user, true))
            .or_else(|| authorized(credentials, request.headers()).map(|user| (user, false))),
        Access::Proxy { header: name, operators } => {
            // A second one was not set by the proxy.
            let mut names = request.headers().get_all(name).iter();
            let (Some(name), None) = (names.next(), names.next()) else { return None };
            let name = name.to_str().ok().filter(|name| !name.is_empty())?.to_owned();
            let role = if operators.contains(&name) { Role::Operator } else { Role::Viewer };
            Some((User { name, role }, false))
        }
        Access::Application => request.extensions().get::<User>().map(|user| (user.clone(), false)),
    }
}

/// Returns the user of a bearer token or of basic authentication.
fn authorized(credentials: &Credentials, headers: &HeaderMap) -> Option<User> {
    let (scheme, value) = header(headers, AUTHORIZATION.as_str())?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return credentials.find(None, value.trim()).cloned();
    }
    let decoded = scheme.eq_ignore_ascii_case("basic").then(|| from_base64(value.trim()))??;
    let decoded = String::from_utf8(decoded).ok()?;
    let (name, secret) = decoded.split_once(':')?;
    credentials.find(Some(name), secret).cloned()
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for c in text.trim_end_matches('=').bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, count) = (bits << 6 | u32::from(value), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

/// Headers that proxies add to what they pass on.
const PROXY_HEADERS: [&str; 3] = ["forwarded", "via", "x-real-ip"];

/// Without a login, refuses requests that do not come from this machine.
///
/// The client writes the `Host`, so the address of its connection must be local, too. Behind a proxy that runs on this
/// machine each address is local. A proxy is recognised by its headers, and by HTTP/1.0, which browsers do not speak.
fn check_local(access: &Access, request: &Request) -> Result<(), Refused> {
    if !matches!(access, Access::Loopback) {
        return Ok(());
    }
    let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>() else {
        return Err(Refused::forbidden(
            "This dashboard has no login, and the application does not say who connects. Set `Access`, or serve the \
             application with `into_make_service_with_connect_info::<SocketAddr>()` to answer this machine only.",
        ));
    };
    if !peer.ip().to_canonical().is_loopback() {
        return Err(Refused::forbidden(
            "This dashboard has no login, so it answers only the machine that it runs on.",
        ));
    }
    let headers = request.headers();
    let forwarded = request.version() < Version::HTTP_11
        || headers
            .keys()
            .any(|name| name.as_str().starts_with("x-forwarded-") || PROXY_HEADERS.contains(&name.as_str()));
    if forwarded {
        return Err(Refused::forbidden(
            "This dashboard has no login, and the request came through a proxy. Start it with tokens, users or a header of the proxy.",
        ));
    }
    if !is_loopback(header(headers, HOST.as_str()).unwrap_or_default()) {
        return Err(Refused::forbidden(
            "This dashboard has no login, so it answers only on localhost, 127.0.0.1 and [::1].",
        ));
    }
    Ok(())
}

/// Refuses forms that a foreign web site sends through the visitor's browser.
fn check_origin(request: &Request) -> Result<(), Refused> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(());
    }
    let headers = request.headers();
    let host = header(headers, HOST.as_str()).unwrap_or_default();
    let foreign = header(headers, ORIGIN.as_str())
        .is_some_and(|origin| origin.split_once("://").map(|(_, host)| host) != Some(host))
        || header(headers, "sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"));
    if foreign { Err(Refused::forbidden("This form comes from another site.")) } else { Ok(()) }
}

/// Returns whether the host of a request, with or without a port, is this machine by a name that no other site can
/// have.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let value = all.flat_map(|line| line.split(';')).find_map(|pair| {
        pair.trim().split_once('=').filter(|(known, _)| *known == name).map(|(_, value)| value)
    })?;
    Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
}

/// What a page may load and do: only its own style sheet, scripts and images.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
    connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

fn finish(response: &mut Response, visit: &Visit, cookies: &[(&String, String)], secure: bool) {
    let headers = response.headers_mut();
    for (name, value) in [
        ("content-security-policy", CONTENT_SECURITY_POLICY),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let path = if visit.base.is_empty() { "/" } else { &visit.base };
    // A link from elsewhere must find the session, or its response would replace it. Only forms act, and a form of
    // another site comes without these cookies.
    for (name, value) in cookies {
        let age = if value.is_empty() { "; Max-Age=0" } else { "" };
        let secure = if secure { "; Secure" } else { "" };
        let cookie = format!("{name}={value}; Path={path}; HttpOnly; SameSite=Lax{age}{secure}");
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            headers.append(SET_COOKIE, cookie);
        }
    }
}
