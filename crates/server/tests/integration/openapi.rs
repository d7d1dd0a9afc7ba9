//! The API document and the data model, as clients fetch them.

use std::collections::BTreeSet;

use reqwest::Method;
use roxmltree::{Document, Node};
use serde_json::{Value, json};

use crate::harness::client::Reply;
use crate::harness::machine::Machine;
use crate::harness::server::TestServer;

#[tokio::test]
async fn the_document_is_served_without_a_token_and_for_the_tenant() {
    let server = TestServer::start().await;
    let client = server.admin().with_token("");
    let document = client.get("/openapi.json").await.expect_status(200);
    assert_eq!(document["openapi"], "3.1.0");
    let url = document["components"]["securitySchemes"]["oauth2"]["flows"]["clientCredentials"]["tokenUrl"]
        .as_str()
        .unwrap();
    // Nothing is asked for, so nothing is granted: but it is the endpoint that says so.
    let reply = Reply::of(client.request(Method::POST, url)).await;
    assert_eq!((reply.status, &reply.body["error"]), (400, &json!("invalid_request")), "{}", reply.text);
}

#[tokio::test]
async fn every_operation_without_a_token_is_there() {
    let server = TestServer::start().await;
    let client = server.admin().with_token("");
    let document = client.get("/openapi.json").await.expect_status(200);
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if operation["security"] != json!([]) {
                continue;
            }
            let tenant =
                operation["parameters"].get(0).map_or(&Value::Null, |parameter| &parameter["example"]);
            let path = path.replace("{tenant}", tenant.as_str().unwrap_or_default());
            let method: Method = method.to_uppercase().parse().unwrap();
            let reply = Reply::of(client.request(method.clone(), &path)).await;
            let described = operation["responses"].get(reply.status.to_string());
            assert!(described.is_some(), "{method} {path}: {}", reply.text);
            // A page may know no such code; but the path is there.
            let is_page = reply.headers["content-type"].to_str().unwrap().starts_with("text/html");
            assert!(reply.status != 405 && (reply.status != 404 || is_page), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn the_data_model_names_the_fields_of_the_entities_and_no_others() {
    let server = TestServer::start().await;
    let client = server.admin();
    let machine = Machine::enroll(&server, "lab-042").await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    let machine = client.get(&format!("/api/machines/{}", machine.id)).await.expect_status(200);

    let reply = client.get("/api/$metadata").await;
    assert_eq!((reply.status, &reply.headers["content-type"]), (200, &"application/xml".parse().unwrap()));
    let model = Document::parse(&reply.text).unwrap();
    for (set, name, entity) in [("MachineActions", "MachineAction", action), ("Machines", "Machine", machine)]
    {
        let found = model.descendants().find(|node| node.attribute("Name") == Some(set)).unwrap();
        assert_eq!(found.attribute("EntityType"), Some(format!("Cordon.{name}").as_str()));
        check(&model, name, &entity);
    }
}

/// The type's properties are the object's fields, and each value is one of its property's type.
fn check(model: &Document<'_>, name: &str, object: &Value) {
    let mut kinds = model.descendants().filter(|node| node.attribute("Name") == Some(name));
    let kind = kinds.find(|node| ["EntityType", "ComplexType"].contains(&node.tag_name().name()));
    let kind = kind.unwrap_or_else(|| kinds_missing(name));
    let properties: Vec<_> = kind.children().filter(|node| node.tag_name().name() == "Property").collect();
    let named: BTreeSet<_> = properties.iter().map(|node| node.attribute("Name").unwrap()).collect();
    let fields = object.as_object().unwrap().keys().map(String::as_str);
    let fields: BTreeSet<_> = fields.filter(|field| !field.starts_with("@odata.")).collect();
    assert_eq!(named, fields, "{name}");
    for property in properties {
        let (field, kind) = (property.attribute("Name").unwrap(), property.attribute("Type").unwrap());
        let value = &object[field];
        if value.is_null() {
            assert_eq!(property.attribute("Nullable"), Some("true"), "{name}/{field}");
            continue;
        }
        match kind.strip_prefix("Collection(").and_then(|kind| kind.strip_suffix(')')) {
            Some(item) => value.as_array().unwrap().iter().for_each(|value| check_value(model, item, value)),
            None => check_value(model, kind, value),
        }
    }
}

fn check_value(model: &Document<'_>, kind: &str, value: &Value) {
    let text = || value.as_str().unwrap_or_else(|| panic!("{value} is no {kind}"));
    match kind {
        "Edm.String" => drop(text()),
        "Edm.Guid" => drop(text().parse::<uuid::Uuid>().unwrap()),
        "Edm.DateTimeOffset" => assert!(text().ends_with('Z') && text().contains('T'), "{value}"),
        "Edm.Boolean" => assert!(value.is_boolean(), "{value}"),
        "Edm.Int32" => assert!(i32::try_from(value.as_i64().unwrap()).is_ok()),
        "Edm.Int64" => assert!(value.is_i64() || value.is_u64(), "{value}"),
        _ => {
            let name = kind.strip_prefix("Cordon.").unwrap_or_else(|| kinds_missing(kind));
            let named = |node: &Node<'_, '_>| node.attribute("Name") == Some(name);
            let kind = model.descendants().find(named).unwrap_or_else(|| kinds_missing(name));
            if kind.tag_name().name() == "EnumType" {
                let mut members = kind.children().filter_map(|member| member.attribute("Name"));
                assert!(members.any(|member| member == text()), "{value} is no {name}");
            } else {
                check(model, name, value);
            }
        }
    }
}

fn kinds_missing<T>(name: &str) -> T {
    panic!("the model has no type {name}")
}
