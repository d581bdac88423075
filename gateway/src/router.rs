//! The routes, and the rules for all of them.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::metrics::GaugeGuard;
use crate::problem::{Problem, ProblemKind};
use crate::state::Gateway;
use crate::{dead_letters, guard, lessons, openapi, page, queues, requests, schedules};

/// The page connects only to its gateway and, under the lab, to the lab.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

/// Headers of every answer: load nothing from other sites, and allow none to embed it.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    // What has an ETag may be cached, and says so itself.
    (header::CACHE_CONTROL, "no-store"),
];

/// All routes.
pub(crate) fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .merge(requests::routes())
        .merge(schedules::routes())
        .merge(queues::routes())
        .merge(dead_letters::routes())
        .merge(page::routes())
        .merge(lessons::routes())
        .route("/openapi.json", get(openapi::describe))
        .fallback(async || ProblemKind::NoRoute.because("the routes are in /openapi.json"))
        .method_not_allowed_fallback(async || {
            ProblemKind::Method.because("the methods of this route are in Allow")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&gateway), each))
        .with_state(gateway)
}

/// Applied to each request on every route.
async fn each(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let _in_flight = GaugeGuard::new(&gateway.metrics.in_flight);
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let linkable = page::is_file(&path);
    let mut response = match guard::check(&request, &gateway.settings.gateway_hosts, linkable) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        *response.body_mut() = problem.at(&path).json().into();
    }
    if let Some(lab) = &gateway.settings.lab {
        let policy =
            POLICY.replace("connect-src 'self'", &format!("connect-src 'self' {}", lab.url));
        let policy = HeaderValue::from_str(&policy).expect("an address is a valid value");
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    gateway.metrics.answered(&method, route, response.status(), begun.elapsed());
    response
}
