//! The admin HTTP API: what operators, scripts and the command line speak to.
//!
//! Everything is JSON; whatever goes wrong is a problem detail of RFC 9457 (see [`Problem`]). One file per
//! group of resources; `/openapi.json` describes them all.

mod bypass;
mod extract;
mod guard;
mod health;
mod insight;
mod lifecycle;
mod migrations;
mod openapi;
mod page;
mod pins;
mod plan;
mod problem;
mod query;
mod rehearsal;
mod shadow;
mod shapes;
mod traffic;
mod verification;

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use health::Health;
pub use insight::{ConflictList, MismatchList};
pub use migrations::MigrationList;
pub use openapi::document;
pub use problem::Problem;
pub use traffic::{Rollback, SetReads, SetWrites};

use crate::migration::control::Control;

/// Largest request body, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// What the handlers share.
struct Api {
    control: Arc<dyn Control>,
    metrics: PrometheusHandle,
}

type Shared = Arc<Api>;

/// The whole API over `control`; `/metrics` renders `metrics`.
pub fn router(control: Arc<dyn Control>, metrics: PrometheusHandle) -> Router {
    Router::new()
        .merge(migrations::routes())
        .merge(lifecycle::routes())
        .merge(traffic::routes())
        .merge(insight::routes())
        .merge(bypass::routes())
        .merge(verification::routes())
        .merge(rehearsal::routes())
        .merge(shadow::routes())
        .merge(shapes::routes())
        .merge(plan::routes())
        .merge(pins::routes())
        .layer(from_fn(guard::same_origin))
        .merge(health::routes())
        .fallback(guard::unknown_path)
        .method_not_allowed_fallback(guard::wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn(guard::detached))
        .with_state(Arc::new(Api { control, metrics }))
}

/// Serves `router` on `listener` until `shutdown`, then lets requests that have begun end.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}
