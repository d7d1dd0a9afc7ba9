//! What the texts in lists may be, for the API document: no values have these types, the fields stay `Vec<String>`.
//!
//! A text that stands alone says its limits in the attributes of its field.

use domain::permission::{Permission, Right};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// The name of a user group or machine group.
pub(crate) enum Name {}

/// The name of a permission.
pub(crate) enum PermissionName {}

/// The name of a right.
pub(crate) enum RightName {}

/// Where a person may be sent back to.
pub(crate) enum RedirectUri {}

/// The id of a machine.
pub(crate) enum MachineId {}

fn text() -> ObjectBuilder {
    Object::builder().schema_type(Type::String)
}

impl PartialSchema for Name {
    fn schema() -> RefOr<Schema> {
        let pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$";
        text().pattern(Some(pattern)).max_length(Some(128)).examples(["Finance"]).into()
    }
}

impl PartialSchema for PermissionName {
    fn schema() -> RefOr<Schema> {
        let names = Permission::ALL.map(Permission::name);
        text().enum_values(Some(names)).examples(["Machine.RestrictExecution"]).into()
    }
}

impl PartialSchema for RightName {
    fn schema() -> RefOr<Schema> {
        text().enum_values(Some(Right::ALL.map(Right::name))).into()
    }
}

impl PartialSchema for RedirectUri {
    fn schema() -> RefOr<Schema> {
        let pattern =
            r#"^(https://[!"$-.0-~][!"$-~]*|http://(127\.0\.0\.1|localhost|\[::1\])([:/][!"$-~]*)?)$"#;
        text().pattern(Some(pattern)).max_length(Some(512)).examples(["https://soar.example/callback"]).into()
    }
}

impl PartialSchema for MachineId {
    fn schema() -> RefOr<Schema> {
        let example = "0f3c9a7be1d2445566778899aabbccddeeff0011";
        text().pattern(Some("^[0-9a-fA-F]{40}$")).examples([example]).into()
    }
}

impl ToSchema for Name {}
impl ToSchema for PermissionName {}
impl ToSchema for RightName {}
impl ToSchema for RedirectUri {}
impl ToSchema for MachineId {}
