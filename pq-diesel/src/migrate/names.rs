//! Substitutes the names of a schema and a table into a migration's SQL.

use crate::table::{Ident, Table};

/// Replaces the double-quoted names of a migration in one pass.
///
/// `"pq"` becomes the schema, `"queue"` the table and `"queue_…"` a name derived from the table. The `$names$` tag
/// around blocks that contain names becomes a tag that none of the names contains.
pub(super) fn substitute(sql: &str, table: &Table) -> String {
    let names = format!("{}{}", table.schema, table.name);
    let tag = (0..).map(|n| format!("$names{n}$")).find(|tag| !names.contains(tag)).unwrap_or_default();
    let mut substituted = String::with_capacity(sql.len());
    // Every second part is inside quotes, for the files contain no other double quotes.
    for (position, part) in sql.split('"').enumerate() {
        if position % 2 == 0 {
            substituted.push_str(&part.replace("$names$", &tag));
            continue;
        }
        let name: Ident = match part {
            Table::DEFAULT_SCHEMA => table.schema.clone(),
            Table::DEFAULT_NAME => table.name.clone(),
            other => table.named(other.strip_prefix("queue_").unwrap_or(other)),
        };
        substituted.push_str(&name.to_string());
    }
    substituted
}
