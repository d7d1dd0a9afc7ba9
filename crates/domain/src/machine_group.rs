//! Machine groups: which machines belong together, who may see them, and which allow policy is theirs.

/// The id of the group of machines that no rule takes. It cannot be deleted or ranked.
pub const UNGROUPED_ID: i64 = 0;
/// The name of that group, in the vendor's words.
pub const UNGROUPED: &str = "Ungrouped machines (default)";
/// The most conditions of one rule.
pub const CONDITIONS_MAX: usize = 200;
/// The longest value of a condition, in characters.
pub const VALUE_CHARS_MAX: usize = 256;

/// A group of machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineGroup {
    /// Its number, which machines carry as `rbacGroupId`.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Which group takes a machine that several rules match: the one with the lowest rank, and 1 is the highest.
    /// None for the group of the ungrouped.
    pub rank: Option<u32>,
    /// Which machines it takes. Without a condition it takes none.
    pub rule: Vec<Condition>,
    /// The user groups whose members see its machines, sorted. When there is none, everybody with a role does.
    pub user_groups: Vec<String>,
    /// The allow policy of its machines, when a call names none; none for the default policy.
    pub policy: Option<String>,
}

/// One condition of a rule. Conditions on the same property are alternatives; all properties that have conditions must
/// be met.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// What is compared.
    pub property: RuleProperty,
    /// How.
    pub operator: RuleOperator,
    /// With what. Case does not matter.
    pub value: String,
}

/// What a condition compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RuleProperty {
    /// The first label of the computer's DNS name.
    Name,
    /// What follows the first label.
    Domain,
    /// Any of the machine's tags.
    Tag,
    /// The operating system, such as `Linux`.
    OsPlatform,
}

/// How a condition compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RuleOperator {
    /// The whole text.
    Equals,
    /// Its beginning.
    StartsWith,
    /// Its end.
    EndsWith,
    /// Any part of it.
    Contains,
}

/// What rules look at.
#[derive(Debug, Clone, Copy)]
pub struct RuleFacts<'a> {
    /// The computer's DNS name.
    pub computer_dns_name: &'a str,
    /// The operating system.
    pub os_platform: &'a str,
    /// The tags.
    pub tags: &'a [String],
}

impl RuleProperty {
    /// Every property.
    pub const ALL: [Self; 4] = [Self::Name, Self::Domain, Self::Tag, Self::OsPlatform];

    /// The property's name on the API and in storage. Never rename.
    pub fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Domain => "domain",
            Self::Tag => "tag",
            Self::OsPlatform => "osPlatform",
        }
    }

    /// The property with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|property| property.name() == name)
    }
}

impl RuleOperator {
    /// Every operator.
    pub const ALL: [Self; 4] = [Self::Equals, Self::StartsWith, Self::EndsWith, Self::Contains];

    /// The operator's name on the API and in storage. Never rename.
    pub fn name(self) -> &'static str {
        match self {
            Self::Equals => "equals",
            Self::StartsWith => "startsWith",
            Self::EndsWith => "endsWith",
            Self::Contains => "contains",
        }
    }

    /// The operator with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operator| operator.name() == name)
    }

    fn holds(self, text: &str, value: &str) -> bool {
        match self {
            Self::Equals => text == value,
            Self::StartsWith => text.starts_with(value),
            Self::EndsWith => text.ends_with(value),
            Self::Contains => text.contains(value),
        }
    }
}

impl MachineGroup {
    /// Whether it is the group of machines that no rule takes.
    pub fn is_ungrouped(&self) -> bool {
        self.id == UNGROUPED_ID
    }

    /// Whether members of these user groups see its machines, given that they have a role.
    pub fn is_open_to(&self, user_groups: &[String]) -> bool {
        self.user_groups.is_empty() || self.user_groups.iter().any(|group| user_groups.contains(group))
    }
}

/// Whose machines a caller may know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineAccess {
    /// Every machine's.
    All,
    /// The machines of these groups only, by id; of none when it is empty.
    Groups(Vec<i64>),
}

impl MachineAccess {
    /// Whether the machines of a group are among them.
    pub fn admits(&self, group: i64) -> bool {
        match self {
            Self::All => true,
            Self::Groups(groups) => groups.contains(&group),
        }
    }

    /// What both admit.
    #[must_use]
    pub fn both(self, other: Self) -> Self {
        match (self, other) {
            (Self::All, other) | (other, Self::All) => other,
            (Self::Groups(these), Self::Groups(those)) => {
                Self::Groups(these.into_iter().filter(|group| those.contains(group)).collect())
            }
        }
    }
}

/// The rules of all groups, made ready for many machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grouping(Vec<(i64, Vec<Condition>)>);

impl Grouping {
    /// The rules of these groups, of which those without a rank take no machine.
    pub fn new(groups: &[MachineGroup]) -> Self {
        let mut ranked: Vec<_> = groups.iter().filter_map(|group| Some((group.rank?, group))).collect();
        ranked.sort_by_key(|(rank, group)| (*rank, group.id));
        let lower = |c: &Condition| Condition { value: c.value.to_lowercase(), ..c.clone() };
        let rule = |group: &MachineGroup| (group.id, group.rule.iter().map(lower).collect());
        Self(ranked.into_iter().map(|(_, group)| rule(group)).collect())
    }

    /// The group that a machine belongs to: the highest-ranked whose rule takes it, else [`UNGROUPED_ID`].
    pub fn group_of(&self, facts: &RuleFacts<'_>) -> i64 {
        let lower = LowerFacts::of(facts);
        self.0.iter().find(|(_, rule)| lower.are_taken_by(rule)).map_or(UNGROUPED_ID, |(id, _)| *id)
    }
}

/// The texts that rules look at, in lower case.
struct LowerFacts {
    name: String,
    domain: String,
    os_platform: String,
    tags: Vec<String>,
}

impl LowerFacts {
    fn of(facts: &RuleFacts<'_>) -> Self {
        let (name, domain) = facts.computer_dns_name.split_once('.').unwrap_or((facts.computer_dns_name, ""));
        Self {
            name: name.to_lowercase(),
            domain: domain.to_lowercase(),
            os_platform: facts.os_platform.to_lowercase(),
            tags: facts.tags.iter().map(|tag| tag.to_lowercase()).collect(),
        }
    }

    fn are_taken_by(&self, rule: &[Condition]) -> bool {
        !rule.is_empty()
            && RuleProperty::ALL.into_iter().all(|property| {
                let mut conditions = rule.iter().filter(|c| c.property == property).peekable();
                conditions.peek().is_none() || conditions.any(|condition| self.meet(condition))
            })
    }

    fn meet(&self, condition: &Condition) -> bool {
        let holds = |text: &String| condition.operator.holds(text, &condition.value);
        match condition.property {
            RuleProperty::Name => holds(&self.name),
            RuleProperty::Domain => holds(&self.domain),
            RuleProperty::Tag => self.tags.iter().any(holds),
            RuleProperty::OsPlatform => holds(&self.os_platform),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn group(id: i64, rank: u32, rule: &[(RuleProperty, RuleOperator, &str)]) -> MachineGroup {
        MachineGroup {
            id,
            name: format!("group {id}"),
            description: String::new(),
            rank: Some(rank),
            rule: rule
                .iter()
                .map(|(property, operator, value)| Condition {
                    property: *property,
                    operator: *operator,
                    value: (*value).to_owned(),
                })
                .collect(),
            user_groups: Vec::new(),
            policy: None,
        }
    }

    const TAGS: &[&str] = &["Finance", "tier-0"];

    fn facts(tags: &[String]) -> RuleFacts<'_> {
        RuleFacts { computer_dns_name: "web-01.prod.example", os_platform: "Linux", tags }
    }

    #[test]
    fn or_inside_a_property_and_across_properties() {
        use RuleOperator::{Contains, EndsWith, Equals, StartsWith};
        use RuleProperty::{Domain, Name, OsPlatform, Tag};
        let tags: Vec<String> = TAGS.iter().map(|tag| (*tag).to_owned()).collect();
        for (rule, matches) in [
            (&[][..], false),
            (&[(Name, Equals, "WEB-01")], true),
            (&[(Name, Equals, "web-01.prod.example")], false),
            (&[(Name, StartsWith, "web"), (Name, StartsWith, "db")], true),
            (&[(Name, StartsWith, "web"), (Domain, EndsWith, ".example")], true),
            (&[(Name, StartsWith, "web"), (Domain, Equals, "test.example")], false),
            (
                &[(Domain, Equals, "prod.example"), (Tag, Equals, "finance"), (OsPlatform, Equals, "linux")],
                true,
            ),
            (&[(Tag, Contains, "tier"), (Tag, Equals, "nothing")], true),
            (&[(Tag, Equals, "nothing")], false),
            (&[(OsPlatform, Equals, "Windows11")], false),
        ] {
            let taken = Grouping::new(&[group(1, 1, rule)]).group_of(&facts(&tags)) == 1;
            assert_eq!(taken, matches, "{rule:?}");
        }
    }

    #[test]
    fn the_highest_rank_takes_the_machine() {
        let rule: &[_] = &[(RuleProperty::Name, RuleOperator::StartsWith, "web")];
        let other: &[_] = &[(RuleProperty::Name, RuleOperator::StartsWith, "db")];
        let groups = [group(1, 3, rule), group(2, 2, rule), group(3, 1, other)];
        assert_eq!(Grouping::new(&groups).group_of(&facts(&[])), 2);
        assert_eq!(Grouping::new(&groups[2..]).group_of(&facts(&[])), UNGROUPED_ID);
        assert_eq!(Grouping::new(&[]).group_of(&facts(&[])), UNGROUPED_ID);
    }

    #[test]
    fn a_group_without_user_groups_is_open() {
        let mut group = group(1, 1, &[]);
        assert!(group.is_open_to(&[]));
        group.user_groups = vec!["soc".to_owned()];
        assert!(!group.is_open_to(&[]));
        assert!(!group.is_open_to(&["SOC".to_owned()]));
        assert!(group.is_open_to(&["other".to_owned(), "soc".to_owned()]));
    }

    proptest! {
        #[test]
        fn a_machine_is_in_exactly_one_group_whatever_the_order(
            values in proptest::collection::vec("[a-c]{0,2}", 1..6),
            name in "[a-c]{1,4}",
            turn in 0_usize..6,
        ) {
            let mut groups: Vec<_> = (1_u32..)
                .zip(&values)
                .map(|(rank, value)| {
                    group(i64::from(rank), rank, &[(RuleProperty::Name, RuleOperator::StartsWith, value)])
                })
                .collect();
            let facts = RuleFacts { computer_dns_name: &name, os_platform: "", tags: &[] };
            let found = Grouping::new(&groups).group_of(&facts);
            let len = groups.len();
            groups.rotate_left(turn % len);
            prop_assert_eq!(Grouping::new(&groups).group_of(&facts), found);
        }
    }
}
