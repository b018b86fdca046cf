//! The description of the API, made from the handlers themselves.

use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{
    Content, ObjectBuilder, OpenApi as Document, PathItem, Ref, RefOr, Required, ResponseBuilder, Type,
};
use utoipa::{Modify, OpenApi};

use super::problem::Problem;
use super::{
    bypass, health, insight, lifecycle, migrations, pins, plan, rehearsal, shadow, shapes, traffic,
    verification,
};

/// The description as served at `/openapi.json`.
#[must_use]
pub fn document() -> Document {
    Description::openapi()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "reshard admin API",
        description = "Moves live data from an old MongoDB cluster to a new one. Repeating a call is harmless.",
        license(name = "Apache-2.0")
    ),
    paths(
        migrations::list,
        migrations::create,
        migrations::one,
        lifecycle::preflight,
        lifecycle::start,
        lifecycle::pause,
        lifecycle::resume,
        lifecycle::verify,
        lifecycle::complete,
        lifecycle::abort,
        lifecycle::drop_old,
        traffic::set_reads,
        traffic::set_writes,
        traffic::rollback,
        traffic::unreturned,
        traffic::acknowledge_unreturned,
        traffic::set_throttle,
        traffic::set_switches,
        pins::pins,
        pins::pin,
        pins::unpin,
        insight::progress,
        insight::conflicts,
        insight::mismatches,
        insight::events,
        verification::verification,
        plan::plan,
        plan::start,
        plan::stop,
        plan::pause,
        plan::resume,
        plan::decisions,
        shapes::shapes,
        bypass::bypass_writes,
        bypass::acknowledge,
        rehearsal::set_rehearsal,
        rehearsal::rehearsal,
        shadow::set_shadow,
        shadow::diffs,
        health::healthz,
        health::readyz,
        health::metrics,
        health::openapi_json,
    ),
    components(schemas(Problem)),
    modifiers(&Common)
)]
struct Description;

/// What all operations have in common, said once.
struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut Document) {
        for (path, item) in &mut document.paths.paths {
            // Preflight is a POST because it is work, but it changes nothing.
            let is_change = !path.ends_with("/preflight");
            let changes = if is_change {
                [item.post.as_mut(), item.put.as_mut(), item.delete.as_mut()]
            } else {
                [None, None, None]
            };
            for operation in changes.into_iter().flatten() {
                let actor = "Who asks, for the audit; \"api\" when left out";
                parameter(operation, "X-Reshard-Actor", ParameterIn::Header, actor);
                if path.contains("{name}") {
                    let epoch = "The ETag of a view: refused with 412 if the migration has changed since";
                    parameter(operation, "If-Match", ParameterIn::Header, epoch);
                }
            }
            for operation in [item.get.as_mut(), item.post.as_mut(), item.put.as_mut(), item.delete.as_mut()]
                .into_iter()
                .flatten()
            {
                if path.contains("{name}") {
                    parameter(operation, "name", ParameterIn::Path, "Name of the migration");
                }
                refusal(operation, "default", "Not done, and why");
            }
            tell_refusals(path, item, is_change);
        }
    }
}

/// The refusals that each operation under `/v1` can answer with, besides a request that makes no sense.
fn tell_refusals(path: &str, item: &mut PathItem, is_change: bool) {
    if !path.starts_with("/v1/") {
        return;
    }
    let is_named = path.contains("{name}");
    let changes = [item.post.as_mut(), item.put.as_mut(), item.delete.as_mut()];
    for operation in changes.into_iter().flatten() {
        refusal(operation, "409", "Does not fit the present state");
        if is_named && is_change {
            refusal(operation, "412", "If-Match does not name the present epoch");
        }
    }
    let all = [item.get.as_mut(), item.post.as_mut(), item.put.as_mut(), item.delete.as_mut()];
    for operation in all.into_iter().flatten() {
        if is_named {
            refusal(operation, "404", "No such migration");
        }
        refusal(operation, "503", "A cluster does not answer, or what is stored has not been read yet");
    }
}

fn refusal(operation: &mut Operation, status: &str, description: &str) {
    let problem = Content::new(Some(RefOr::Ref(Ref::from_schema_name("Problem"))));
    let response =
        ResponseBuilder::new().description(description).content("application/problem+json", problem);
    operation.responses.responses.insert(status.to_owned(), response.build().into());
}

fn parameter(operation: &mut Operation, name: &str, place: ParameterIn, description: &str) {
    let required = if matches!(place, ParameterIn::Path) { Required::True } else { Required::False };
    let parameter: Parameter = ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(description))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build();
    operation.parameters.get_or_insert_default().push(parameter);
}
