//! `$metadata`: the data model of OData clients, CSDL 4.0.
//!
//! Owns how the schemas of `openapi::schemas` read as OData's types. What an entity has is `api-types`'s to say, in the
//! order of the store's list of fields; nothing is listed here a second time. Deliberately without actions and
//! functions: OData would want them called by qualified names, which this API does not know.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use odata::Schema;
use serde_json::Value;
use store::list::{MACHINE_ACTIONS, MACHINES};

use crate::openapi::schemas::{SCHEMAS, resolve, type_name, without_null};

/// The entity sets: name, type, and the fields in their order.
const SETS: [(&str, &str, &Schema); 2] = [
    (api_types::machine_action::SET, "MachineAction", &MACHINE_ACTIONS),
    (api_types::machine::SET, "Machine", &MACHINES),
];

static METADATA: LazyLock<String> = LazyLock::new(metadata);

pub(crate) async fn fetch() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/xml")], METADATA.as_str())
}

fn metadata() -> String {
    let mut model = Model::default();
    let mut sets = String::new();
    for (set, name, list) in SETS {
        model.add_entity(name, list);
        _ = writeln!(sets, r#"        <EntitySet Name="{set}" EntityType="Cordon.{name}"/>"#);
    }
    let Model { enums, complex, entities, .. } = model;
    format!(
        r#"<?xml version="1.0" encoding="utf-8"?>
<edmx:Edmx Version="4.0" xmlns:edmx="http://docs.oasis-open.org/odata/ns/edmx">
  <edmx:DataServices>
    <Schema Namespace="Cordon" xmlns="http://docs.oasis-open.org/odata/ns/edm">
{enums}{complex}{entities}      <EntityContainer Name="Container">
{sets}      </EntityContainer>
    </Schema>
  </edmx:DataServices>
</edmx:Edmx>
"#
    )
}

/// The types so far, as XML. Every name in it is an identifier of ours, so that none needs escapes.
#[derive(Default)]
struct Model {
    enums: String,
    complex: String,
    entities: String,
    /// The complex and enum types that are written.
    known: Vec<String>,
}

impl Model {
    fn add_entity(&mut self, name: &str, list: &Schema) {
        let schema = SCHEMAS.get(name).unwrap_or(&Value::Null);
        let properties = self.properties(name, schema, list.fields);
        _ = write!(
            self.entities,
            "      <EntityType Name=\"{name}\">\n        <Key><PropertyRef Name=\"id\"/></Key>\n{properties}      \
             </EntityType>\n"
        );
    }

    fn add_complex(&mut self, name: &str, schema: &Value) {
        if self.is_new(name) {
            let fields = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
            let fields: Vec<&str> = fields.map(|(field, _)| field.as_str()).collect();
            let properties = self.properties(name, schema, &fields);
            _ = write!(
                self.complex,
                "      <ComplexType Name=\"{name}\">\n{properties}      </ComplexType>\n"
            );
        }
    }

    fn is_new(&mut self, name: &str) -> bool {
        let new = !self.known.iter().any(|known| known == name);
        if new {
            self.known.push(name.to_owned());
        }
        new
    }

    fn properties(&mut self, of: &str, schema: &Value, fields: &[&str]) -> String {
        let mut xml = String::new();
        for field in fields {
            let Some(property) = schema.get("properties").and_then(|all| all.get(field)) else { continue };
            let (nullable, property) = without_null(property);
            let kind = self.kind(of, field, property);
            _ = writeln!(xml, r#"        <Property Name="{field}" Type="{kind}" Nullable="{nullable}"/>"#);
        }
        xml
    }

    /// The name of a schema's type.
    fn kind(&mut self, of: &str, field: &str, schema: &Value) -> String {
        if let Some(name) =
            schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next())
            && resolve(schema).get("properties").is_some()
        {
            self.add_complex(name, resolve(schema));
            return format!("Cordon.{name}");
        }
        let schema = resolve(schema);
        let names = schema.get("enum").and_then(Value::as_array);
        let format = schema.get("format").and_then(Value::as_str);
        match (type_name(schema), format) {
            (Some("array"), _) => {
                let items = schema.get("items").unwrap_or(&Value::Null);
                format!("Collection({})", self.kind(of, field, items))
            }
            (Some("string"), Some("uuid")) => "Edm.Guid".to_owned(),
            (Some("string"), Some("date-time")) => "Edm.DateTimeOffset".to_owned(),
            (Some("string"), _) => match names {
                Some(names) => self.enumeration(of, field, names),
                None => "Edm.String".to_owned(),
            },
            (Some("boolean"), _) => "Edm.Boolean".to_owned(),
            (Some("integer"), Some("int32")) => "Edm.Int32".to_owned(),
            (Some("integer"), _) => "Edm.Int64".to_owned(),
            (Some("number"), _) => "Edm.Double".to_owned(),
            // Anything: an object with whatever it has.
            _ => {
                let name = capitalized(field);
                if self.is_new(&name) {
                    _ = writeln!(self.complex, r#"      <ComplexType Name="{name}" OpenType="true"/>"#);
                }
                format!("Cordon.{name}")
            }
        }
    }

    fn enumeration(&mut self, of: &str, field: &str, names: &[Value]) -> String {
        let name = format!("{of}{}", capitalized(field));
        if self.is_new(&name) {
            _ = writeln!(self.enums, r#"      <EnumType Name="{name}">"#);
            for (number, member) in names.iter().filter_map(Value::as_str).enumerate() {
                _ = writeln!(self.enums, r#"        <Member Name="{member}" Value="{number}"/>"#);
            }
            self.enums.push_str("      </EnumType>\n");
        }
        format!("Cordon.{name}")
    }
}

fn capitalized(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}
