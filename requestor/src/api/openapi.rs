//! The description of the API for programs, made from the code that answers.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use contract::{MAX_CHARACTERS, MAX_COUNT, MAX_LENGTH};
use serde_json::{Value, json};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, SchemaFormat, Type};
use utoipa::{OpenApi, PartialSchema, ToSchema};

use super::input::NewRequest;
use super::list::{List, Summary};
use super::problem::{Outcome, Problem};
use super::router;
use super::status::{DeadLetter, State, Status};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Random strings, asked for and looked up",
        description = "Asking is accepted at once, and done in its own time: `POST /requests` says where \
                       to look, and `GET /requests/{id}` how far it has come. Who asks may be told to \
                       come back, or that nobody knows whether a request got through; with an \
                       `Idempotency-Key` the same may be asked as often as it takes, and is asked once.\n\n\
                       Input is read strictly: unknown fields and parameters are refused. What is \
                       wrong is always said as `application/problem+json` (RFC 9457).\n\n\
                       For programs and for pages of the same origin. A page of another site is refused. \
                       Where the API listens on a loopback address, or is told its names in `API_HOSTS`, \
                       a `Host` has to be an address, `localhost` or one of these names.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(router::ask, router::list, router::status, router::openapi),
    components(schemas(
        NewRequest,
        router::Accepted,
        State,
        Status,
        DeadLetter,
        List,
        Summary,
        Problem,
        Outcome,
        Id
    ))
)]
struct Description;

/// The description in JSON.
fn document() -> Value {
    let description = Description::openapi();
    let mut document =
        serde_json::to_value(description).expect("the description can always become JSON");
    // The body may be left out, which the derived description could only say together with `null`.
    document["paths"]["/requests"]["post"]["requestBody"]["required"] = false.into();
    let schemas = &mut document["components"]["schemas"];
    schemas["NewRequest"]["allOf"] = json!([{ "$ref": "#/components/schemas/WithinLimit" }]);
    schemas["WithinLimit"] = within_limit();
    document
}

/// All that is within the limit of the product. A schema knows no products, so this is the stair below
/// it: for each length the largest count that may have it.
fn within_limit() -> Value {
    let steps = (MAX_CHARACTERS / MAX_LENGTH..=MAX_COUNT).filter(|count| {
        *count == MAX_COUNT || MAX_CHARACTERS / count != MAX_CHARACTERS / (count + 1)
    });
    let step = |count| {
        let length = MAX_CHARACTERS / count;
        json!({ "properties": { "count": { "maximum": count }, "length": { "maximum": length } } })
    };
    json!({
        "description": format!(
            "Says in steps that `count` × `length` is at most {MAX_CHARACTERS}: a schema knows no products"
        ),
        "anyOf": steps.map(step).collect::<Vec<_>>(),
    })
}

pub(super) fn answer() -> Response {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.clone()).into_response()
}

/// The id of a request, as the contract has it.
pub(super) struct Id;

impl PartialSchema for Id {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::Custom("uuid".to_owned())))
            .pattern(Some("^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"))
            .description(Some("A UUID of version 7, in lower case with hyphens"))
            .examples(["019cadd3-8896-7938-bc36-c32d4d2563a7"])
            .into()
    }
}

impl ToSchema for Id {
    fn name() -> std::borrow::Cow<'static, str> {
        "RequestId".into()
    }
}
