//! The isolation levels of a transaction.

/// The isolation level of a transaction, for stores that have levels.
///
/// The transactions that this library begins are at [`Isolation::ReadCommitted`], whatever the database's default is. A
/// task asks for another level for its transactional handler by [`crate::Task::isolation`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// Each statement sees what was committed before it began.
    #[default]
    ReadCommitted,
    /// All statements see what was committed before the first of them began.
    RepeatableRead,
    /// As if transactions ran one after the other.
    Serializable,
}
