//! The order of machine groups: where the ranks of documents put them, and by which saves the server gets there.
//!
//! Saving a group with a rank takes it out of the order and puts it in at that place, or last; others make room.

use std::collections::{HashMap, HashSet};

/// The order that is wanted, of the server's `current` one (without the group of the ungrouped, which has no rank): the
/// groups in `ranked`, by ascending rank, at their places or last; the others in between as they stand, with those of
/// `new` last.
pub(crate) fn wanted(current: &[String], ranked: &[(String, u32)], new: &[String]) -> Vec<String> {
    let is_ranked: HashSet<&String> = ranked.iter().map(|(name, _)| name).collect();
    let others = current.iter().chain(new).filter(|name| !is_ranked.contains(name));
    let mut order: Vec<String> = others.cloned().collect();
    for (name, rank) in ranked {
        put(&mut order, name, *rank);
    }
    order
}

/// Puts a group into the order as the server does.
pub(crate) fn put(order: &mut Vec<String>, name: &str, rank: u32) {
    order.retain(|other| other != name);
    let place = usize::try_from(rank).unwrap_or(usize::MAX).saturating_sub(1).min(order.len());
    order.insert(place, name.to_owned());
}

/// The saves, each a group and its rank, that make `order` the `wanted` one. Only groups in `movable` are saved: the
/// others must stand in the same order in both.
pub(crate) fn moves(
    mut order: Vec<String>,
    wanted: &[String],
    movable: &HashSet<String>,
) -> Vec<(String, u32)> {
    let ranks: HashMap<&String, u32> = wanted.iter().zip(1..).collect();
    let mut moves = Vec::new();
    for (place, name) in wanted.iter().enumerate() {
        while let Some(there) = order.get(place).filter(|there| *there != name) {
            // Either the group can be put here, or what stands here makes room by going to its own place, further on.
            let moved = if movable.contains(name) { name.clone() } else { there.clone() };
            let Some(rank) = ranks.get(&moved).filter(|_| movable.contains(&moved)) else { return moves };
            put(&mut order, &moved, *rank);
            moves.push((moved, *rank));
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn ranked(text: &str) -> Vec<(String, u32)> {
        let pairs = text.split_whitespace().map(|pair| pair.split_once('=').unwrap());
        pairs.map(|(name, rank)| (name.to_owned(), rank.parse().unwrap())).collect()
    }

    #[test]
    fn ranks_are_places_and_the_others_stand_in_between() {
        for (current, documents, new, expected) in [
            ("", "a=1 b=2", "", "a b"),
            ("x y", "a=1", "", "a x y"),
            ("a b x y", "a=2 b=3", "", "x a b y"),
            ("x", "a=1 b=10", "u", "a x u b"),
            ("a b x", "a=5 b=6", "", "x a b"),
        ] {
            let order = wanted(&names(current), &ranked(documents), &names(new));
            assert_eq!(order, names(expected), "{current} and {documents}");
            assert_eq!(wanted(&order, &ranked(documents), &[]), order, "twice is once");
        }
    }

    #[test]
    fn every_order_is_reached_from_every_other() {
        // All orders of four groups, of which two are not saved and keep their order.
        let all = names("a b x y");
        let mut orders = vec![Vec::new()];
        for _ in 0..all.len() {
            orders = orders
                .into_iter()
                .flat_map(|order: Vec<String>| {
                    let rest: Vec<_> = all.iter().filter(|name| !order.contains(name)).cloned().collect();
                    rest.into_iter().map(move |name| [order.clone(), vec![name]].concat())
                })
                .collect();
        }
        let at = |order: &[String], name: &str| order.iter().position(|other| other == name).unwrap();
        orders.retain(|order| at(order, "x") < at(order, "y"));
        assert_eq!(orders.len(), 12);
        let movable: HashSet<_> = names("a b").into_iter().collect();
        for from in &orders {
            for to in &orders {
                let mut order = from.clone();
                for (name, rank) in moves(from.clone(), to, &movable) {
                    assert!(movable.contains(&name));
                    put(&mut order, &name, rank);
                }
                assert_eq!(&order, to, "from {from:?}");
            }
        }
    }
}
