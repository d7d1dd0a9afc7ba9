//! What two versions of a thing say, line by line: each line has a place of its own, so comparing is one walk.

use api_types::machine_group::{Condition, MachineGroupDocument};
use api_types::policy::{PolicyChange, PolicyDocument, Rule};
use api_types::role::Role;
use console::Style;

use crate::commands::machine_group::condition_text;
use crate::text::printable;

/// Lines by place, in order, each place once.
pub(crate) type Lines = Vec<(Place, String)>;

/// Where a line stands: those of the same number by name.
pub(crate) type Place = (u8, String);

/// What differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Difference {
    /// Only before.
    Removed(String),
    /// Only after.
    Added(String),
}

/// What differs between two versions; what changed is removed and added.
pub(crate) fn between(before: &Lines, after: &Lines) -> Vec<Difference> {
    let mut differences = Vec::new();
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (before.peek(), after.peek()) {
            (Some((old, _)), Some((new, _))) => old.cmp(new),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => return differences,
        };
        let old = if order.is_le() { before.next() } else { None };
        let new = if order.is_ge() { after.next() } else { None };
        if old != new {
            differences.extend(old.map(|(_, line)| Difference::Removed(line.clone())));
            differences.extend(new.map(|(_, line)| Difference::Added(line.clone())));
        }
    }
}

/// Differences as lines for people, colored on a terminal.
pub(crate) fn rendered(differences: &[Difference]) -> String {
    let (red, green) = (Style::new().red(), Style::new().green());
    let line = |difference: &Difference| match difference {
        Difference::Removed(line) => format!("    {}\n", red.apply_to(format!("- {}", printable(line)))),
        Difference::Added(line) => format!("    {}\n", green.apply_to(format!("+ {}", printable(line)))),
    };
    differences.iter().map(line).collect()
}

/// What a policy says. Digests are compared as numbers, rules have no order, and settings at their defaults go without
/// saying.
pub(crate) fn of_policy(policy: &PolicyDocument) -> Lines {
    let settings = policy.settings.read().map(|settings| settings.entries_set()).unwrap_or_default();
    let settings = settings.iter().map(|(setting, value)| setting_line(setting, value));
    let rules = policy.rules.iter().map(|rule| ((2, rule.id.clone()), rule_line(rule)));
    let profile = line(0, format!("profile: {}", policy.profile));
    ordered(std::iter::once(profile).chain(settings).chain(rules).collect())
}

/// What a machine group says; `rank` is where it stands among all, if the document says where it is to.
pub(crate) fn of_group(group: &MachineGroupDocument, rank: Option<u32>) -> Lines {
    let mut lines = Vec::new();
    lines.extend(text(0, "description", &group.description));
    lines.extend(rank.map(|rank| line(1, format!("rank: {rank}"))));
    lines.extend(group.policy.as_ref().map(|policy| line(2, format!("policy: {policy}"))));
    let condition = |condition: &Condition| {
        let condition = condition_text(condition);
        ((3, condition.clone()), format!("rule: {condition}"))
    };
    lines.extend(group.rule.iter().map(condition));
    lines.extend(names(4, "user group", &group.user_groups));
    ordered(lines)
}

/// What a role says.
pub(crate) fn of_role(role: &Role) -> Lines {
    let mut lines = Vec::new();
    lines.extend(text(0, "description", &role.description));
    lines.extend(names(1, "right", &role.rights));
    lines.extend(names(2, "user group", &role.user_groups));
    lines.extend(role.bulk_machines_max.map(|max| line(3, format!("bulk machines: {max}"))));
    ordered(lines)
}

/// What settings are set.
pub(crate) fn of_settings<'a>(settings: impl IntoIterator<Item = (&'a str, u64)>) -> Lines {
    ordered(
        settings
            .into_iter()
            .map(|(name, value)| ((0, name.to_owned()), format!("{name}: {value}")))
            .collect(),
    )
}

/// What the server says that a change of a policy is.
pub(crate) fn of_change(change: &PolicyChange) -> Vec<Difference> {
    let mut before = Lines::new();
    let mut after = Lines::new();
    before.extend(change.profile_before.as_ref().map(|profile| line(0, format!("profile: {profile}"))));
    after.extend(change.profile_after.as_ref().map(|profile| line(0, format!("profile: {profile}"))));
    before.extend(change.settings.iter().map(|change| setting_line(&change.setting, &change.before)));
    after.extend(change.settings.iter().map(|change| setting_line(&change.setting, &change.after)));
    let rule = |rule: &Rule| ((2, rule.id.clone()), rule_line(rule));
    before.extend(change.removed.iter().chain(change.changed.iter().map(|both| &both.before)).map(rule));
    after.extend(change.added.iter().chain(change.changed.iter().map(|both| &both.after)).map(rule));
    between(&ordered(before), &ordered(after))
}

fn setting_line(setting: &str, value: &str) -> (Place, String) {
    ((1, setting.to_owned()), format!("{setting}: {value}"))
}

fn rule_line(rule: &Rule) -> String {
    let path = rule.path.as_ref().map(|path| format!(" at {path}")).unwrap_or_default();
    let comment = if rule.comment.is_empty() { String::new() } else { format!(" ({})", rule.comment) };
    let content = match (&rule.sha256, &rule.fs_verity) {
        (Some(sha256), _) => sha256.to_lowercase(),
        (None, Some(digest)) => format!("fs-verity {}", digest.to_lowercase()),
        (None, None) => String::new(),
    };
    format!("rule {}: {} {content}{path}{comment}", rule.id, rule.effect)
}

fn line(place: u8, line: String) -> (Place, String) {
    ((place, String::new()), line)
}

fn text(place: u8, key: &str, value: &str) -> Option<(Place, String)> {
    let value = value.trim();
    (!value.is_empty()).then(|| line(place, format!("{key}: {value}")))
}

/// A set of names: the server keeps them sorted, each once, without blanks around them.
fn names<'a>(
    place: u8,
    key: &'a str,
    names: &'a [String],
) -> impl Iterator<Item = (Place, String)> + use<'a> {
    names.iter().map(move |name| ((place, name.trim().to_owned()), format!("{key}: {}", name.trim())))
}

fn ordered(mut lines: Lines) -> Lines {
    lines.sort();
    lines.dedup();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lines: &[(&str, &str)]) -> Lines {
        lines.iter().map(|(place, line)| ((0, (*place).to_owned()), (*line).to_owned())).collect()
    }

    #[test]
    fn what_changed_is_removed_and_added_in_its_place() {
        let before = lines(&[("a", "a 1"), ("b", "b 1"), ("d", "d 1")]);
        let after = lines(&[("b", "b 1"), ("c", "c 1"), ("d", "d 2")]);
        let removed = |line: &str| Difference::Removed(line.to_owned());
        let added = |line: &str| Difference::Added(line.to_owned());
        let expected = [removed("a 1"), added("c 1"), removed("d 1"), added("d 2")];
        assert_eq!(between(&before, &after), expected);
        assert_eq!(between(&before, &before), []);
        assert_eq!(between(&Lines::new(), &lines(&[("a", "a 1")])), [added("a 1")]);
    }

    #[test]
    fn order_and_spelling_that_mean_nothing_are_no_difference() {
        let role = |rights: &[&str], groups: &[&str]| Role {
            name: "r".to_owned(),
            description: String::new(),
            rights: rights.iter().map(|right| (*right).to_owned()).collect(),
            user_groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            bulk_machines_max: None,
        };
        assert_eq!(of_role(&role(&["a", "b"], &["y", "x", "x "])), of_role(&role(&["b", "a"], &["x", "y"])));
    }
}
