//! The types of `api-types` as JSON schemas: collected from the routes, with what only the server knows.
//!
//! What is added: the names that a list's properties can have, from the store's own list of them; that a field of a
//! reply that can be null is always there; and examples, put together from those of the parts.

use std::sync::LazyLock;

use api_types::error::ErrorEnvelope;
use api_types::token::{TokenError, TokenV1, TokenV2};
use odata::{Schema, Type};
use serde_json::{Map, Value, json};
use store::list::{MACHINE_ACTIONS, MACHINES};

use crate::router::{ROUTES, Shape};

/// The schemas by name.
pub(crate) static SCHEMAS: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    let shapes = |body: bool| {
        ROUTES.iter().filter_map(move |route| if body { route.docs.body } else { route.docs.reply })
    };
    let issuer = [
        Shape::of::<ErrorEnvelope>(),
        Shape::of::<TokenV1>(),
        Shape::of::<TokenV2>(),
        Shape::of::<TokenError>(),
    ];
    let mut schemas = Map::new();
    shapes(false).chain(issuer).for_each(|shape| collect(&shape, &mut schemas));
    schemas.values_mut().for_each(require_nullable);
    // What a request may leave out stays so, also where a reply has the same type.
    shapes(true).for_each(|shape| collect(&shape, &mut schemas));
    require_either("BulkRequest", "MachineIds", "Filter", &mut schemas);
    add_names("Machine", &MACHINES, &mut schemas);
    add_names("MachineAction", &MACHINE_ACTIONS, &mut schemas);
    schemas
});

fn collect(shape: &Shape, schemas: &mut Map<String, Value>) {
    let mut parts = vec![((shape.name)(), (shape.schema)())];
    (shape.add_parts)(&mut parts);
    for (name, schema) in parts {
        let schema = serde_json::to_value(schema).unwrap_or_default();
        if is_component(&schema) {
            schemas.insert(name, schema);
        }
    }
}

/// Whether a schema gets a name of its own: numbers and the like do not.
fn is_component(schema: &Value) -> bool {
    ["properties", "allOf", "oneOf", "format"].iter().any(|key| schema.get(key).is_some())
        && !matches!(schema.get("type").and_then(Value::as_str), Some("integer" | "number"))
}

/// A reference to a type's schema; the schema itself when it has no name.
pub(super) fn reference(shape: &Shape) -> Value {
    let schema = serde_json::to_value((shape.schema)()).unwrap_or_default();
    if is_component(&schema) {
        json!({"$ref": format!("#/components/schemas/{}", (shape.name)())})
    } else {
        schema
    }
}

/// The schema that a reference leads to, or the schema itself.
pub(crate) fn resolve(schema: &Value) -> &Value {
    let name = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
    name.and_then(|name| SCHEMAS.get(name)).unwrap_or(schema)
}

/// The parts of a schema that are joined by a word.
fn joined<'a>(schema: &'a Value, word: &str) -> impl Iterator<Item = &'a Value> {
    schema.get(word).and_then(Value::as_array).into_iter().flatten()
}

/// Whether null is a value, and which schema the others have.
pub(crate) fn without_null(schema: &Value) -> (bool, &Value) {
    let is_null = |schema: &&Value| schema.get("type") == Some(&"null".into());
    if let Some(other) = joined(schema, "oneOf").find(|part| !is_null(part))
        && joined(schema, "oneOf").any(|part| is_null(&part))
    {
        return (true, other);
    }
    (joined(schema, "type").any(|name| name == "null"), schema)
}

/// A type's name, whether or not null is allowed beside it.
pub(crate) fn type_name(schema: &Value) -> Option<&str> {
    let names = schema.get("type")?;
    names.as_str().or_else(|| joined(schema, "type").filter_map(Value::as_str).find(|name| *name != "null"))
}

/// A collection as `$select` leaves it: the same fields, and no others, but none is required.
pub(super) fn selected(collection: &Value) -> Value {
    let items = resolve(collection).pointer("/properties/value/items").map_or(&Value::Null, resolve);
    json!({
        "type": "object",
        "description": "With `$select`: the rows have some of the fields.",
        "required": ["value"],
        "properties": {"value": {"type": "array", "items": {
            "type": "object",
            "properties": items.get("properties"),
            "additionalProperties": false,
        }}},
    })
}

fn require_nullable(schema: &mut Value) {
    if let Some(parts) = schema.get_mut("allOf").and_then(Value::as_array_mut) {
        parts.iter_mut().for_each(require_nullable);
    }
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let nullable: Vec<Value> = properties
        .iter()
        .filter(|(_, property)| without_null(property).0)
        .map(|(name, _)| name.as_str().into())
        .collect();
    if let Some(schema) = schema.as_object_mut() {
        let required = schema.entry("required").or_insert_with(|| json!([]));
        if let Some(required) = required.as_array_mut() {
            required.extend(nullable);
            required.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
            required.dedup();
        }
    }
}

/// Says that just one of two fields is there, and not null.
fn require_either(name: &str, one: &str, other: &str, schemas: &mut Map<String, Value>) {
    let given = |field: &str| json!({"required": [field], "properties": {field: {"not": {"type": "null"}}}});
    if let Some(schema) = schemas.get_mut(name).and_then(Value::as_object_mut) {
        schema.insert("oneOf".to_owned(), json!([given(one), given(other)]));
    }
}

/// Says of an entity's fields which names they can have.
fn add_names(entity: &str, list: &Schema, schemas: &mut Map<String, Value>) {
    for property in list.properties {
        let Type::Enum(names) = property.kind else { continue };
        let mut at = entity.to_owned();
        let mut steps = property.name.split('/').peekable();
        while let Some(step) = steps.next() {
            let field = schemas.get_mut(&at).and_then(|schema| schema.get_mut("properties")?.get_mut(step));
            let Some(field) = field else { break };
            if steps.peek().is_some() {
                let next = without_null(field).1.get("$ref").and_then(Value::as_str);
                let Some(next) = next.and_then(|path| path.rsplit('/').next()) else { break };
                at = next.to_owned();
            } else if type_name(field) == Some("string") {
                field["enum"] = names.into();
            }
        }
    }
}

/// An example of a schema: its own, or one put together from its parts.
pub(super) fn example(schema: &Value) -> Value {
    let schema = resolve(schema);
    let own = schema.get("example").or_else(|| schema.get("examples")?.get(0));
    if let Some(example) = own.or_else(|| schema.get("enum")?.get(0)).or_else(|| schema.get("default")) {
        return example.clone();
    }
    let mut parts = joined(schema, "allOf").map(example).peekable();
    if parts.peek().is_some() {
        let objects = parts.filter_map(|part| if let Value::Object(part) = part { Some(part) } else { None });
        return Value::Object(objects.flatten().collect());
    }
    let (nullable, inner) = without_null(schema);
    if !std::ptr::eq(inner, schema) {
        return example(inner);
    }
    if let Some(part) = joined(schema, "oneOf").chain(joined(schema, "anyOf")).next()
        && schema.get("properties").is_none()
    {
        return example(part);
    }
    match (type_name(schema), schema.get("format").and_then(Value::as_str)) {
        (Some("array"), _) => schema.get("items").map_or_else(|| json!([]), |items| json!([example(items)])),
        _ if nullable => Value::Null,
        (Some("object"), _) => {
            let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
            let shown = properties.filter(|(name, property)| {
                let required = joined(schema, "required").any(|required| required == name.as_str());
                required || property.get("examples").is_some() || type_name(property) == Some("array")
            });
            shown.map(|(name, property)| (name.clone(), example(property))).collect()
        }
        (Some("boolean"), _) => false.into(),
        (Some("integer" | "number"), _) => schema.get("minimum").cloned().unwrap_or_else(|| 1.into()),
        (Some("string"), Some("uuid")) => "0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d".into(),
        (Some("string"), _) => "text".into(),
        _ => json!({}),
    }
}

/// The fields that are text and of which nothing is said but that.
#[cfg(test)]
pub(super) fn texts_without_example() -> Vec<String> {
    fn visit(name: &str, schema: &Value, missing: &mut Vec<String>) {
        if schema.get("example").is_some() || schema.get("examples").is_some() {
            return;
        }
        joined(schema, "allOf").for_each(|part| visit(name, part, missing));
        for (field, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let said = ["example", "examples", "enum", "format", "default"];
            let plain = type_name(property) == Some("string") && !without_null(property).0;
            let plain = plain && joined(schema, "required").any(|required| required == field.as_str());
            if plain && !said.iter().any(|key| property.get(key).is_some()) {
                missing.push(format!("{name}.{field}"));
            }
        }
    }
    let mut missing = Vec::new();
    SCHEMAS.iter().for_each(|(name, schema)| visit(name, schema, &mut missing));
    missing
}
