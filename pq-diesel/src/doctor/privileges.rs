//! Checks which kinds of process the connection's role can run: producer, consumer or reader.

use diesel::PgConnection;

use super::{Exam, Finding, Level};
use crate::Error;
use crate::grants::Role;
use crate::privileges;

pub(super) const CHECK: &str = "privileges";

pub(super) fn examine(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let mut role = String::new();
    let mut missing = Vec::new();
    for kind in Role::ALL {
        let (holder, lacks) = privileges::missing(conn, &exam.store.table, kind, None)?;
        missing.push((kind.as_str(), lacks));
        role = holder;
    }
    Ok(vec![assess(&role, &missing)])
}

fn assess(role: &str, missing: &[(&str, Vec<String>)]) -> Finding {
    let can_be: Vec<&str> =
        missing.iter().filter(|(_, lacks)| lacks.is_empty()).map(|(name, _)| *name).collect();
    let lacks: Vec<String> = missing
        .iter()
        .filter(|(_, lacks)| !lacks.is_empty())
        .map(|(name, lacks)| {
            let more = if lacks.len() > 1 { format!(" and {} more", lacks.len() - 1) } else { String::new() };
            format!("{name} lacks {}{more}", lacks[0])
        })
        .collect();
    if can_be.is_empty() {
        let message = format!("{role} cannot put, take or read: {}", lacks.join("; "));
        return Finding::new(CHECK, Level::Failure, message)
            .advise("run `pq grant ROLE producer|consumer|reader` as the owner of the table, or connect as another role");
    }
    let but = if lacks.is_empty() { String::new() } else { format!(" ({})", lacks.join("; ")) };
    Finding::ok(CHECK, format!("{role} can be {}{but}", can_be.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kind_of_process_is_enough() {
        let lacks = |count: usize| vec!["INSERT on queue".to_owned(); count];
        let none = assess("bob", &[("producer", lacks(3)), ("reader", lacks(1))]);
        assert_eq!(none.level, Level::Failure);
        assert!(
            none.message.contains("producer lacks INSERT on queue and 2 more; reader lacks INSERT on queue")
        );
        let reads = assess("bob", &[("producer", lacks(1)), ("reader", lacks(0))]);
        assert_eq!(
            (reads.level, reads.message.as_str()),
            (Level::Ok, "bob can be reader (producer lacks INSERT on queue)")
        );
    }
}
