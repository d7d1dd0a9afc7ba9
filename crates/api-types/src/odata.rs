//! How entities and collections are wrapped.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{AllOf, Array, KnownFormat, Object, Ref, Schema, SchemaFormat, Type};
use utoipa::openapi::{ObjectBuilder, RefOr};
use utoipa::{PartialSchema, ToSchema};

/// One entity with its context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entity<T> {
    /// `{base}/api/$metadata#{set}/$entity`.
    #[serde(rename = "@odata.context")]
    pub context: String,
    /// The entity.
    #[serde(flatten)]
    pub entity: T,
}

/// A list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collection<T> {
    /// `{base}/api/$metadata#{set}`.
    #[serde(rename = "@odata.context", default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// How many match in all, when asked for.
    #[serde(rename = "@odata.count", default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The entities of this page.
    pub value: Vec<T>,
    /// Where the next page is; absent on the last.
    #[serde(rename = "@odata.nextLink", default, skip_serializing_if = "Option::is_none")]
    pub next_link: Option<String>,
}

// By hand: the derived schemas of generic types leave out the schema of the argument.
impl<T: ToSchema> PartialSchema for Entity<T> {
    fn schema() -> RefOr<Schema> {
        let context = text("Where `$metadata` describes the entity.")
            .examples([format!("https://cordon.example/api/$metadata#{}s/$entity", T::name())]);
        let context = Object::builder().property("@odata.context", context).required("@odata.context");
        AllOf::builder().item(Ref::from_schema_name(T::name())).item(context).into()
    }
}

impl<T: ToSchema> ToSchema for Entity<T> {
    fn name() -> Cow<'static, str> {
        format!("{}Entity", T::name()).into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        with_argument::<T>(schemas);
    }
}

impl<T: ToSchema> PartialSchema for Collection<T> {
    fn schema() -> RefOr<Schema> {
        let count = Object::builder()
            .schema_type(Type::Integer)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .minimum(Some(0))
            .description(Some("How many match in all, when asked for."));
        Object::builder()
            .property("@odata.context", text("Where `$metadata` describes the entities."))
            .property("@odata.count", count)
            .property("value", Array::new(Ref::from_schema_name(T::name())))
            .required("value")
            .property("@odata.nextLink", text("Where the next page is; absent on the last."))
            .into()
    }
}

impl<T: ToSchema> ToSchema for Collection<T> {
    fn name() -> Cow<'static, str> {
        format!("{}Collection", T::name()).into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        with_argument::<T>(schemas);
    }
}

fn text(description: &str) -> ObjectBuilder {
    Object::builder().schema_type(Type::String).description(Some(description))
}

fn with_argument<T: ToSchema>(schemas: &mut Vec<(String, RefOr<Schema>)>) {
    schemas.push((T::name().into_owned(), T::schema()));
    T::schemas(schemas);
}
