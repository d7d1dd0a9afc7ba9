//! Roles: what people may do, by the user groups that they belong to.

use domain::permission::Right;
use domain::role;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::text::{Name, RightName};

/// A role. Unknown keys are refused: a misspelled right must not vanish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Role {
    /// Its name, which is its identity.
    #[schema(
        max_length = 128,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$",
        examples("Tier 1 responder")
    )]
    pub name: String,
    /// What it is for.
    #[serde(default)]
    #[schema(
        max_length = 1024,
        pattern = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$",
        examples("Restricts machines at night")
    )]
    pub description: String,
    /// What it allows: `View data`, `Active remediation actions`, `Alerts investigation`, `Manage security settings`,
    /// `Manage portal system settings`, `Bulk remediation`, `Break-glass codes`.
    #[serde(default)]
    #[schema(inline, value_type = Vec<RightName>)]
    pub rights: Vec<String>,
    /// The user groups whose members have it: names of ours, or values of an issuer's `groups` claim.
    #[serde(default)]
    #[schema(inline, value_type = Vec<Name>, max_items = 1000)]
    pub user_groups: Vec<String>,
    /// How many machines its members may change by bulk calls in an hour; null for the setting `bulkMachinesPerHour`.
    #[serde(default)]
    #[schema(maximum = 4_294_967_295_u32, examples(100))]
    pub bulk_machines_max: Option<u32>,
}

impl Role {
    /// The keys that the body may have, as they must be spelled.
    pub const KEYS: [&str; 5] = ["name", "description", "rights", "userGroups", "bulkMachinesMax"];

    /// The domain's role.
    ///
    /// # Errors
    /// A sentence that names the value that is wrong.
    pub fn read(self) -> Result<role::Role, String> {
        let right = |name: &String| {
            let names = || Right::ALL.map(Right::name).join(", ");
            Right::from_name(name).ok_or_else(|| format!("{name:?} is no right; there are: {}", names()))
        };
        Ok(role::Role {
            rights: self.rights.iter().map(right).collect::<Result<_, _>>()?,
            name: self.name,
            description: self.description,
            user_groups: self.user_groups,
            bulk_machines_max: self.bulk_machines_max,
        })
    }
}

impl From<role::Role> for Role {
    fn from(role: role::Role) -> Self {
        Self {
            rights: role.rights.iter().map(|right| right.name().to_owned()).collect(),
            name: role.name,
            description: role.description,
            user_groups: role.user_groups,
            bulk_machines_max: role.bulk_machines_max,
        }
    }
}
