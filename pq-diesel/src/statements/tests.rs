//! The number of statements that a store prepares, and their completeness.

use std::collections::BTreeSet;

use super::*;
use crate::Error;

impl Statements {
    /// Returns the texts of all statements that a store of one table can prepare.
    fn texts(&self) -> BTreeSet<String> {
        let triggers = [Trigger::Fires, Trigger::Off, Trigger::OffForThis];
        let puts = [&self.put_one, &self.put_many];
        let puts = puts.into_iter().flat_map(|put| triggers.map(|trigger| put.of(trigger)));
        let ranges = [&self.fast_take.range, &self.fast_lease.range];
        let one_text = puts.chain(ranges).chain(self.with_one_text());
        one_text.map(Statement::text).chain(self.take_texts()).collect()
    }

    /// Returns the texts of the takes that have several sizes.
    fn take_texts(&self) -> BTreeSet<String> {
        let fast = [&self.fast_take, &self.fast_lease];
        let fast = fast.into_iter().flat_map(|fast| [&fast.behind_key, &fast.past_keys]);
        fast.chain(&self.fallbacks).flat_map(Sized::texts).collect()
    }
}

/// Each text is planned and kept by each connection.
#[test]
fn a_table_has_a_bounded_number_of_statements() {
    let statements = Statements::new(&Table::default());
    assert_eq!(statements.take_texts().len(), 80);
    assert_eq!(statements.texts().len(), 198);
}

#[test]
fn every_placeholder_is_substituted() {
    let statements = Statements::new(&Table::default());
    let targets = [statements.copy.clone(), statements.copy_with_ids.clone()];
    for text in statements.texts().into_iter().chain(targets) {
        let mut rest = text.as_str();
        while let Some(at) = rest.find('{') {
            rest = &rest[at + 1..];
            assert!(rest.starts_with('}'), "{text}");
        }
        assert!(!text.contains("--") && !text.contains('\n'), "{text}");
    }
}

/// A hostile name must not be parsed again when later placeholders are substituted.
#[test]
fn names_that_look_like_placeholders_are_only_names() -> Result<(), Error> {
    let texts = |table: &Table| Statements::new(table).texts();
    let plain = Table::new("s", "t")?;
    let hostile = Table::new("$3 {leases} -- ", "{count} $2 '")?;
    let renamed = |text: String| {
        // Outside of names no text contains these.
        text.replace("$3 {leases} -- ", "s").replace("{count} $2 ''", "t").replace("{count} $2 '", "t")
    };
    assert_eq!(texts(&hostile).into_iter().map(renamed).collect::<BTreeSet<_>>(), texts(&plain));
    Ok(())
}
