//! All of the SQL that touches jobs, each statement with its order and its locks.

mod archive;
mod desk;
mod put;
mod take;
mod verdict;
mod walk;

use std::sync::OnceLock;

pub(crate) use self::put::Trigger;
pub(crate) use self::walk::Walks;
use crate::prepared::Statement;
use crate::table::Table;

/// The statements for one table.
#[derive(Debug)]
pub(crate) struct Statements {
    pub(crate) put_one: ByTrigger,
    pub(crate) put: ByTrigger,
    pub(crate) put_unique: Statement,
    pub(crate) walk_gone: Walks,
    pub(crate) walk: Walks,
    pub(crate) walk_leased: Walks,
    pub(crate) beside: Statement,
    pub(crate) put_numbers: Statement,
    pub(crate) put_numbers_quietly: Statement,
    pub(crate) put_clock: Statement,
    pub(crate) put_clock_quietly: Statement,
    /// Tables with columns, for COPY.
    pub(crate) copy: String,
    pub(crate) copy_numbered: String,
    pub(crate) take: [Sized; 4],
    pub(crate) lease: [Sized; 4],
    pub(crate) retake: Statement,
    pub(crate) free_unique: Statement,
    pub(crate) ring: Statement,
    pub(crate) update: Statement,
    pub(crate) update_leased: Statement,
    pub(crate) settle_held: Statement,
    pub(crate) finish: Statement,
    pub(crate) settle: Statement,
    pub(crate) extend: Statement,
    pub(crate) sweep_turn: Statement,
    pub(crate) sweep_over: Statement,
    pub(crate) sweep_expire: Statement,
    pub(crate) sweep_forget: Statement,
    pub(crate) bury: Statement,
    pub(crate) cancel_waiting: Statement,
    pub(crate) cancel_leased: Statement,
    pub(crate) archived: Statement,
    pub(crate) revive: Statement,
    pub(crate) prune: Statement,
    pub(crate) prune_all: Statement,
    pub(crate) clear: Statement,
    pub(crate) now: Statement,
    pub(crate) pause: Statement,
    pub(crate) resume: Statement,
    pub(crate) overview: Statement,
    pub(crate) list: Statement,
    pub(crate) transfer: Statement,
    pub(crate) beat: Statement,
    pub(crate) leave: Statement,
    pub(crate) forget_silent: Statement,
    pub(crate) workers: Statement,
    pub(crate) stop_worker: Statement,
    pub(crate) set_cron: Statement,
    pub(crate) crons: Statement,
    pub(crate) remove_cron: Statement,
    pub(crate) pause_cron: Statement,
    pub(crate) due_crons: Statement,
    pub(crate) advance_cron: Statement,
}

/// A statement that takes jobs: for a number that is a parameter, and for some that stand in the text.
///
/// What a LIMIT in the text costs is known without the parameters, so PostgreSQL plans the statement once for
/// all. With a parameter there it plans anew at each call, which takes longer than to take one job.
#[derive(Debug)]
pub(crate) struct Sized {
    text: String,
    position: usize,
    any: Statement,
    fixed: [(usize, OnceLock<Statement>); Self::SIZES.len()],
}

impl Sized {
    /// The sizes by which workers take, and those of a few threads that take together.
    const SIZES: [usize; 26] = [
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 32, 64, 128, 256, 500, 512, 1024, 2048, 4096,
        8192,
    ];

    /// A statement in whose text `{count}` stands for the number; where it is a parameter, it is the one of this
    /// position.
    fn new(text: String, position: usize) -> Self {
        Self {
            any: Statement::new(&text.replace("{count}", &format!("${position}"))),
            text,
            position,
            fixed: Self::SIZES.map(|size| (size, OnceLock::new())),
        }
    }

    /// Whether there is a statement with this number in its text.
    pub(crate) fn is_fixed(count: usize) -> bool {
        Self::SIZES.contains(&count)
    }

    /// The statement for so many, and whether the number stands in its text.
    pub(crate) fn of(&self, count: usize) -> (&Statement, bool) {
        let Some((_, statement)) = self.fixed.iter().find(|(size, _)| *size == count) else {
            return (&self.any, false);
        };
        let made = statement.get_or_init(|| {
            // The parameters behind it move up by one.
            let sized = self.text.replace("{count}", &count.to_string());
            Statement::new(&sized.replace(&format!("${}", self.position + 1), &format!("${}", self.position)))
        });
        (made, true)
    }
}

/// A statement that puts, for each thing that the table's trigger may do about it.
#[derive(Debug)]
pub(crate) struct ByTrigger([Statement; 3]);

impl ByTrigger {
    fn new(statement: impl Fn(Trigger) -> Statement) -> Self {
        Self([Trigger::Fires, Trigger::Off, Trigger::OffForThis].map(statement))
    }

    pub(crate) fn of(&self, trigger: Trigger) -> &Statement {
        let [fires, off, off_for_this] = &self.0;
        match trigger {
            Trigger::Fires => fires,
            Trigger::Off => off,
            Trigger::OffForThis => off_for_this,
        }
    }
}

impl Statements {
    pub(crate) fn new(table: &Table) -> Self {
        // diesel finds a prepared statement by its text, so a text is as short as it can be. (No literal of ours has
        // two spaces; names may.)
        let squeezed = |sql: &str| sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let names = |sql: &str| {
            squeezed(sql)
                .replace("{jobs}", &table.jobs())
                .replace("{archive}", &table.archive())
                .replace("{leases}", &table.beside("leases"))
                .replace("{settled}", &table.beside("settled"))
                .replace("{keys}", &table.beside("keys"))
                .replace("{unique}", &table.beside("unique"))
                .replace("{paused}", &table.beside("paused"))
                .replace("{workers}", &table.beside("workers"))
                .replace("{cron}", &table.beside("cron"))
                .replace("{lock_keyed_job}", &table.beside("lock_keyed_job"))
                .replace("{is_live}", &table.beside("is_live"))
                .replace("{put_unique}", &table.beside("put_unique"))
                .replace("{jobs_name}", &table.jobs_literal())
                .replace("{tokens_name}", &table.literal("lease_tokens"))
                .replace("{notifier_lock}", &table.channel_lock("notifier", "channel"))
                .replace("{writers_lock}", &table.channel_lock("writers", "channel"))
        };
        let statement = |sql: &str| Statement::new(&names(sql));
        let levels = |hold| take::levels(hold).map(|sql| Sized::new(names(&sql), 2));
        let walks = |hold| walk::walks(hold, names);
        Self {
            put_one: ByTrigger::new(|trigger| statement(&put::one(trigger))),
            put: ByTrigger::new(|trigger| statement(&put::many(trigger))),
            put_unique: statement(put::UNIQUE),
            walk_gone: walks(take::Hold::Nothing),
            walk: walks(take::Hold::Transaction),
            walk_leased: walks(take::Hold::Lease),
            beside: statement(&walk::beside()),
            take: levels(take::Hold::Transaction),
            lease: levels(take::Hold::Lease),
            put_numbers: statement(&put::numbers(false)),
            put_numbers_quietly: statement(&put::numbers(true)),
            put_clock: statement(&put::clock(false)),
            put_clock_quietly: statement(&put::clock(true)),
            copy: names(put::COPY),
            copy_numbered: names(put::COPY_NUMBERED),
            retake: statement(take::RETAKE),
            free_unique: statement(take::FREE_UNIQUE),
            ring: statement(take::RING),
            update: statement(verdict::UPDATE),
            update_leased: statement(verdict::UPDATE_LEASED),
            settle_held: statement(verdict::SETTLE_HELD),
            finish: statement(verdict::FINISH),
            settle: statement(verdict::SETTLE),
            extend: statement(verdict::EXTEND),
            sweep_turn: statement(verdict::SWEEP_TURN),
            sweep_over: statement(verdict::SWEEP_OVER),
            sweep_expire: statement(verdict::SWEEP_EXPIRE),
            sweep_forget: statement(verdict::SWEEP_FORGET),
            bury: statement(archive::BURY),
            cancel_waiting: statement(archive::CANCEL_WAITING),
            cancel_leased: statement(archive::CANCEL_LEASED),
            archived: statement(archive::ARCHIVED),
            revive: statement(archive::REVIVE),
            prune: statement(archive::PRUNE),
            prune_all: statement(archive::PRUNE_ALL),
            clear: statement(archive::CLEAR),
            now: statement(desk::NOW),
            pause: statement(desk::PAUSE),
            resume: statement(desk::RESUME),
            overview: statement(desk::OVERVIEW),
            list: statement(desk::LIST),
            transfer: statement(desk::TRANSFER),
            beat: statement(desk::BEAT),
            leave: statement(desk::LEAVE),
            forget_silent: statement(desk::FORGET_SILENT),
            workers: statement(desk::WORKERS),
            stop_worker: statement(desk::STOP_WORKER),
            set_cron: statement(desk::SET_CRON),
            crons: statement(desk::CRONS),
            remove_cron: statement(desk::REMOVE_CRON),
            pause_cron: statement(desk::PAUSE_CRON),
            due_crons: statement(desk::DUE_CRONS),
            advance_cron: statement(desk::ADVANCE_CRON),
        }
    }
}
