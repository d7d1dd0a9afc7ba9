//! Machine groups: which machines belong together, who may see them, and which allow policy is theirs.

use domain::machine_group::{self, RuleOperator, RuleProperty};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::text::Name;

/// A machine group as people write it. Unknown keys are refused: a misspelled condition must not vanish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MachineGroupDocument {
    /// Its name. Another one than in the path renames the group.
    #[schema(
        max_length = 128,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$",
        examples("Finance")
    )]
    pub name: String,
    /// What it is for.
    #[serde(default)]
    #[schema(
        max_length = 1024,
        pattern = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$",
        examples("Machines with payment data")
    )]
    pub description: String,
    /// Which group takes a machine that several rules match: that with the lowest rank; 1 is the highest. When it is
    /// missing, a new group comes last, and a group that exists keeps its own. Others make room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 4_294_967_295_u32, examples(1))]
    pub rank: Option<u32>,
    /// Which machines it takes: conditions on the same property are alternatives, all properties that have conditions
    /// must be met. Without a condition it takes none.
    #[serde(default)]
    #[schema(max_items = 200)]
    pub rule: Vec<Condition>,
    /// The user groups whose members see its machines; everybody with a role when there is none.
    #[serde(default)]
    #[schema(inline, value_type = Vec<Name>, max_items = 1000)]
    pub user_groups: Vec<String>,
    /// The allow policy of its machines when a call names none; the policy `default` when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(examples("default"))]
    pub policy: Option<String>,
}

/// One condition of a rule. Case does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// What is compared: `name` (the first label of the DNS name), `domain` (the rest of it), `tag` (any) or
    /// `osPlatform`.
    #[schema(pattern = "^(name|domain|tag|osPlatform)$", examples("tag"))]
    pub property: String,
    /// How: `equals`, `startsWith`, `endsWith` or `contains`.
    #[schema(pattern = "^(equals|startsWith|endsWith|contains)$", examples("equals"))]
    pub operator: String,
    /// With what.
    #[schema(min_length = 1, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$", examples("finance"))]
    pub value: String,
}

/// A machine group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineGroup {
    /// Its number, which machines carry as `rbacGroupId`; 0 for the machines that no rule takes.
    #[schema(examples(1))]
    pub id: i64,
    /// Its name.
    #[schema(examples("Finance"))]
    pub name: String,
    /// What it is for.
    #[schema(examples("Machines with payment data"))]
    pub description: String,
    /// Its rank; null for the group of the ungrouped.
    #[schema(examples(1))]
    pub rank: Option<u32>,
    /// Which machines it takes.
    pub rule: Vec<Condition>,
    /// The user groups whose members see its machines; everybody with a role when there is none.
    #[schema(examples("responders"))]
    pub user_groups: Vec<String>,
    /// The allow policy of its machines; null for the policy `default`.
    #[schema(examples("default"))]
    pub policy: Option<String>,
    /// How many machines are in it.
    #[schema(examples(12))]
    pub machines: u64,
}

/// What saving a machine group would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineGroupPreview {
    /// How many machines would be in it.
    #[schema(examples(12))]
    pub machines: u64,
    /// How many would come in from other groups.
    #[schema(examples(3))]
    pub joining: u64,
    /// How many would leave it.
    #[schema(examples(0))]
    pub leaving: u64,
    /// Some that would be in it, at most a hundred.
    pub examples: Vec<MachineName>,
}

/// A machine by id and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineName {
    /// 40 hexadecimal digits.
    #[schema(pattern = "^[0-9a-f]{40}$", examples("0f3c9a7be1d2445566778899aabbccddeeff0011"))]
    pub id: String,
    /// The machine's name.
    #[schema(examples("lab-042"))]
    pub computer_dns_name: String,
}

impl MachineGroupDocument {
    /// The keys that the body may have, as they must be spelled.
    pub const KEYS: [&str; 6] = ["name", "description", "rank", "rule", "userGroups", "policy"];
}

impl Condition {
    /// The domain's condition.
    ///
    /// # Errors
    /// A sentence that names the value that is wrong.
    pub fn read(self) -> Result<machine_group::Condition, String> {
        let names = || RuleProperty::ALL.map(RuleProperty::name).join(", ");
        let property = RuleProperty::from_name(&self.property);
        let property =
            property.ok_or_else(|| format!("property {:?} is not one of {}", self.property, names()))?;
        let names = || RuleOperator::ALL.map(RuleOperator::name).join(", ");
        let operator = RuleOperator::from_name(&self.operator);
        let operator =
            operator.ok_or_else(|| format!("operator {:?} is not one of {}", self.operator, names()))?;
        Ok(machine_group::Condition { property, operator, value: self.value })
    }
}

impl From<machine_group::Condition> for Condition {
    fn from(condition: machine_group::Condition) -> Self {
        Self {
            property: condition.property.name().to_owned(),
            operator: condition.operator.name().to_owned(),
            value: condition.value,
        }
    }
}

impl MachineGroup {
    /// A group with the number of its machines.
    pub fn sized(group: machine_group::MachineGroup, machines: u64) -> Self {
        Self {
            id: group.id,
            name: group.name,
            description: group.description,
            rank: group.rank,
            rule: group.rule.into_iter().map(Condition::from).collect(),
            user_groups: group.user_groups,
            policy: group.policy,
            machines,
        }
    }
}
