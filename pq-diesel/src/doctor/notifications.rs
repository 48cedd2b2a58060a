//! Checks the notification queue, which all databases of the server share.

use diesel::prelude::*;
use diesel::sql_types::Double;

use super::{Exam, Finding, Level, percent};
use crate::Error;

pub(super) const CHECK: &str = "notification queue";

pub(super) fn examine(_: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let used: f64 = diesel::dsl::sql::<Double>("SELECT pg_notification_queue_usage()").get_result(conn)?;
    let message = format!("{} in use", percent(used));
    let advice = "a listening session inside a transaction keeps the queue from being emptied, and puts fail at \
        commit once it is full; end that transaction";
    Ok(vec![Finding::new(CHECK, level(used), message).advise_if_bad(advice)])
}

fn level(used: f64) -> Level {
    match used {
        used if used > 0.5 => Level::Failure,
        used if used > 0.1 => Level::Warning,
        _ => Level::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_full_is_a_failure() {
        assert_eq!(
            [0.0, 0.1, 0.11, 0.5, 0.51].map(level),
            [Level::Ok, Level::Ok, Level::Warning, Level::Warning, Level::Failure]
        );
    }
}
