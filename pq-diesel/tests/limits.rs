//! Limits: what only PostgreSQL can show.

mod common;

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use pq_diesel::{Limits, PutOptions, Rate, Retention, Wait};
use serde_json::{Value, json};

use self::common::*;

fn count(conn: &mut PgConnection, sql: &str) -> QueryResult<i64> {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn)
}

#[test]
fn a_limit_by_sql_is_what_the_library_sets() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let queue = queue(&database)?;
    let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
    let limit = |conn: &mut PgConnection, arguments: &str| {
        diesel::sql_query(format!("SELECT pq.queue_limit('apples'{arguments})")).execute(conn)
    };
    limit(&mut conn, ", running => 50, rate => 100, running_per_group => 3, period => '1 minute'")?;
    let expected = Limits::new().running(50).rate(Rate::new(100, minute)).running_per_group(3);
    assert_eq!(queue.limits()?, expected);
    limit(&mut conn, ", group_key => 'a', running => 7, rate => 5, burst => 9")?;
    let expected = expected.running_of("a", 7).rate_of("a", Rate::new(5, second).burst(9));
    assert_eq!(queue.limits()?, expected);
    limit(&mut conn, ", rate_per_group => 2000, burst_per_group => 4")?;
    let of_group = Limits::new().rate_per_group(Rate::new(2_000, second).burst(4));
    assert_eq!(queue.limits()?, of_group.running_of("a", 7).rate_of("a", Rate::new(5, second).burst(9)));
    limit(&mut conn, ", fair => true")?;
    limit(&mut conn, ", group_key => 'b', weight => 3")?;
    let fair = Limits::new().fair().running_of("a", 7).rate_of("a", Rate::new(5, second).burst(9));
    assert_eq!(queue.limits()?, fair.weight_of("b", 3));
    limit(&mut conn, ", running => 1")?;
    let limits = Limits::new().running(1).running_of("a", 7).rate_of("a", Rate::new(5, second).burst(9));
    assert_eq!(queue.limits()?, limits, "only the groups of a fair queue have weights");
    queue.pause()?;
    limit(&mut conn, ", group_key => 'a'")?;
    limit(&mut conn, "")?;
    assert!(queue.limits()?.is_empty());
    assert!(queue.resume()?);
    assert_eq!(count(&mut conn, "SELECT count(*) FROM pq.queue_controls")?, 0);

    for (arguments, expected) in [
        (", running => 0", "invalid running 0: it must be 1 to 1000000"),
        (", rate => 1000001", "invalid rate 1000001: it must be 1 to 1000000"),
        (", burst => 1", "invalid burst: it must come with a rate"),
        (", rate => 1, period => '0'", "invalid period '00:00:00'"),
        (", group_key => ''", "invalid group_key ''"),
        (", weight => 2", "cannot use weight without group_key"),
        (", group_key => 'a', fair => true", "cannot use group_key with fair"),
        (", group_key => 'a', weight => 1001", "invalid weight 1001: it must be 1 to 1000"),
        (
            ", group_key => 'a', weight => 2",
            "queue 'apples' is not fair; call queue_limit(queue, fair => true) first",
        ),
        (", group_key => 'a', running_per_group => 1", "cannot use group_key with a limit of each group"),
    ] {
        let refused = limit(&mut conn, arguments).map_err(|error| error.to_string());
        assert!(refused.clone().is_err_and(|error| error.contains(expected)), "{arguments}: {refused:?}");
    }
    Ok(())
}

/// Otherwise the tables would grow with every tenant that ever was.
#[test]
fn maintenance_forgets_the_places_and_buckets_that_nobody_needs() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let queue = queue(&database)?;
    let hourly = Rate::new(1, Duration::from_secs(3_600)).burst(1);
    let limits = Limits::new().running(3).running_per_group(2).rate_per_group(hourly);
    queue.set_limits(&limits)?;
    for group in ["a", "b"] {
        queue.put_with(&json!(group), &PutOptions::new().group(group))?;
    }
    let ended = queue.lease(1, PATIENCE, Wait::No)?;
    let running = queue.lease(1, PATIENCE, Wait::No)?;
    queue.settle(&ended[0], pq_diesel::Outcome::Complete)?;
    queue.pq().maintain(&Retention::default())?;
    // The group whose job runs keeps its places. Both buckets are empty.
    let places = "SELECT count(*) FROM pq.queue_places WHERE group_key <> ''";
    assert_eq!(count(&mut conn, places)?, 1);
    let held: String =
        diesel::dsl::sql::<Text>("SELECT min(group_key) FROM pq.queue_places WHERE group_key <> ''")
            .get_result(&mut conn)?;
    assert_eq!(json!(held), running[0].data);
    assert_eq!(count(&mut conn, "SELECT count(*) FROM pq.queue_buckets")?, 2);
    queue.set_limits(&Limits::new())?;
    queue.pq().maintain(&Retention::default())?;
    // Limits that are set again find the places of the job that runs.
    let used = "SELECT count(*) FROM pq.queue_places WHERE lease IN (SELECT id FROM pq.queue_leases)";
    assert_eq!(count(&mut conn, used)?, 2);
    queue.settle(&running[0], pq_diesel::Outcome::Complete)?;
    queue.pq().maintain(&Retention::default())?;
    for table in ["places", "buckets"] {
        assert_eq!(count(&mut conn, &format!("SELECT count(*) FROM pq.queue_{table}"))?, 0);
    }
    Ok(())
}

/// As after many takes, whose dead entries of the indexes would be passed.
#[test]
fn turns_that_do_not_begin_at_the_start_leave_nothing() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let queue = queue(&database)?;
    let put = |group: &str, first: u32, jobs: u32| {
        let options = PutOptions::new().group(group);
        let jobs: Vec<_> = (first..first + jobs).map(|data| (json!(data), &options)).collect();
        queue.put_many_with(jobs.iter().map(|(data, options)| (data, *options)))
    };
    put("a", 0, 20)?;
    put("b", 100, 20)?;
    queue.put_many(&[json!(200), json!(201)])?;
    queue.set_limits(&Limits::new().fair())?;
    let data = |jobs: &[pq_diesel::Job<Value>]| jobs.iter().map(|job| job.data.clone()).collect::<Vec<_>>();
    let jobs = queue.lease(5, PATIENCE, Wait::No)?;
    assert_eq!(data(&jobs), [200, 0, 100, 201, 1]);
    queue.settle(&jobs[1], pq_diesel::Outcome::GiveBack)?;
    diesel::sql_query("UPDATE pq.queue_buckets SET turns = jsonb_set(turns, '{scan,costs}', '[1, 1]')")
        .execute(&mut conn)?;
    queue.put_with(&json!("urgent"), &PutOptions::new().group("b").priority(1))?;
    put("c", 300, 1)?;
    let next = queue.lease(5, PATIENCE, Wait::No)?;
    assert_eq!(data(&next), [json!("urgent"), json!(101), json!(300), json!(2), json!(102)]);
    let rest = std::iter::from_fn(|| {
        Some(queue.lease(7, PATIENCE, Wait::No)).filter(|jobs| !matches!(jobs, Ok(jobs) if jobs.is_empty()))
    });
    let rest = rest.collect::<Result<Vec<_>, _>>()?.concat();
    assert_eq!(rest.len(), 44 - 4 - 5);
    assert!(rest.iter().any(|job| job.data == 0), "the job that was given back");
    Ok(())
}

#[test]
fn a_take_of_a_limited_queue_can_begin_behind_a_position() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let queue = queue(&database)?;
    let ids = queue.put_many(&[json!(1), json!(2), json!(3)])?;
    queue.set_limits(&Limits::new().running(9))?;
    let mut take = |behind: i64| -> QueryResult<Vec<i64>> {
        let sql = format!(
            "(job).id FROM pq.queue_take_limited('apples', 1, NULL, nextval('pq.queue_lease_tokens'), 0, 'infinity', {behind}) \
             WHERE (job).id IS NOT NULL"
        );
        diesel::dsl::sql::<BigInt>(&format!("SELECT {sql}")).load(&mut conn)
    };
    assert_eq!(take(ids[1].id.0)?, [ids[2].id.0]);
    assert_eq!(take(ids[1].id.0)?, [ids[0].id.0], "nothing is behind, so it begins at the start");
    assert_eq!(take(i64::MIN)?, [ids[1].id.0]);
    Ok(())
}

/// Puts a job of each group, locks the first one, as a transaction does that changes it, and returns the data of
/// those that are taken beside it, and how many places they have.
fn take_beside_a_locked_job(
    limits: &Limits,
    groups: &[&str],
    count: usize,
) -> Result<(Vec<Value>, i64), Box<dyn std::error::Error>> {
    let database = database()?;
    let queue = queue(&database)?;
    queue.set_limits(limits)?;
    for (number, group) in groups.iter().enumerate() {
        queue.put_with(&json!(number), &PutOptions::new().group(*group))?;
    }
    // The places exist after the first take.
    let first = queue.lease(2, Duration::from_secs(60), Wait::No)?;
    first.iter().try_for_each(|job| queue.settle(job, pq_diesel::Outcome::GiveBack))?;
    let mut other = database.connect()?;
    let taken = other.transaction(|conn| {
        diesel::sql_query("SELECT FROM pq.queue ORDER BY id LIMIT 1 FOR UPDATE").execute(conn)?;
        queue.lease(count, Duration::from_secs(60), Wait::No)
    })?;
    let places =
        "SELECT count(*) FROM pq.queue_places JOIN pq.queue_leases ON id = lease WHERE group_key <> ''";
    Ok((taken.into_iter().map(|job| job.data).collect(), self::count(&mut other, places)?))
}

#[test]
fn jobs_beside_a_locked_one_have_places_of_their_own() -> Outcome {
    let limits = Limits::new().running_per_group(2);
    let (taken, places) = take_beside_a_locked_job(&limits, &["a"; 3], 8)?;
    assert_eq!((taken, places), (vec![json!(1), json!(2)], 2));
    Ok(())
}

#[test]
fn a_group_whose_job_is_locked_loses_its_turn() -> Outcome {
    let (taken, _) = take_beside_a_locked_job(&Limits::new().fair(), &["a", "b"], 1)?;
    assert_eq!(taken, [json!(1)]);
    Ok(())
}

/// A take looks at 100,000 jobs of groups at most. What it looks at is kept although it returns no job, and although
/// the place that it has locked is unlocked by a rollback to a savepoint.
#[test]
fn takes_go_on_where_the_last_one_has_looked() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let queue = queue(&database)?;
    let group = PutOptions::new().group("a");
    queue.put_many_with(std::iter::repeat_n((&json!(1), &group), 130_000))?;
    queue.put(&json!("behind"))?;
    queue.set_limits(&Limits::new().running(5).running_per_group(1))?;
    assert_eq!(queue.lease(1, PATIENCE, Wait::No)?.len(), 1);
    let mut takes = std::iter::from_fn(|| Some(queue.get_many(1, Wait::No))).take(4);
    let found = takes.position(|jobs| jobs.is_ok_and(|jobs| jobs.iter().any(|job| job.data == "behind")));
    assert!(found.is_some_and(|takes| takes > 0), "{found:?}");
    queue.pq().maintain(&Retention::default())?;
    let kept = "SELECT count(*) FROM pq.queue_buckets WHERE turns #> '{behind,all,level}' IS NOT NULL";
    assert_eq!(count(&mut conn, kept)?, 1);
    queue.set_limits(&Limits::new())?;
    queue.pq().maintain(&Retention::default())?;
    assert_eq!(count(&mut conn, "SELECT count(*) FROM pq.queue_buckets")?, 0);
    Ok(())
}

/// Creates a function that takes a job and returns how many pages were read.
const PAGES: &str = "
    CREATE FUNCTION public.pages() RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE plan json;
    BEGIN
        EXECUTE $take$EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT pq.queue_take_limited(
            'apples', 1, 60000000, nextval('pq.queue_lease_tokens'), NULL, NULL, NULL)$take$ INTO plan;
        RETURN (plan #>> '{0,Plan,Shared Hit Blocks}')::bigint + (plan #>> '{0,Plan,Shared Read Blocks}')::bigint;
    END$$";

/// A take that compared each due job with all others would read millions of pages.
#[test]
fn a_take_reads_a_due_job_of_a_key_once() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let queue = queue(&database)?;
    conn.batch_execute(PAGES)?;
    conn.batch_execute(
        "INSERT INTO pq.queue (q_name, data, schedule_at, attempt, serial_key, annotations)
         SELECT 'apples', to_json(number), now() - number * interval '1 ms', 1, 'key ' || number,
             jsonb_build_object('group', 'group ' || number % 10)
         FROM generate_series(1, 20000) AS number;
         ANALYZE pq.queue",
    )?;
    let each = 6_500;
    for (limits, most) in [
        (Limits::new().running(9), 3 * each),
        (Limits::new().running_per_group(9), 3 * each),
        (Limits::new().fair(), 10 * each),
    ] {
        queue.set_limits(&limits)?;
        let pages = count(&mut conn, "SELECT public.pages()")?;
        assert!(pages < most, "{pages} pages were read with {limits:?}");
    }
    assert_eq!(count(&mut conn, "SELECT count(*) FROM pq.queue_leases")?, 3);
    Ok(())
}

#[test]
fn a_take_beside_an_open_one_has_the_next_jobs() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    queue.set_limits(&Limits::new().running_per_group(3))?;
    let groups: Vec<_> = (0..50).map(|group| PutOptions::new().group(format!("group {group}"))).collect();
    let data: Vec<_> = (0..250).map(|job| json!(job)).collect();
    queue.put_many_with(data.iter().zip(groups.iter().cycle()))?;
    // The places exist after the first take.
    let first = queue.lease(250, PATIENCE, Wait::No)?;
    first.iter().try_for_each(|job| queue.settle(job, pq_diesel::Outcome::GiveBack))?;
    let (mut conn, mut other) = (database.connect()?, database.connect()?);
    conn.transaction(|conn| {
        let taken = queue.on(conn).get_many(60)?;
        assert_eq!(
            taken.iter().map(|job| &job.data).collect::<Vec<_>>(),
            data[..60].iter().collect::<Vec<_>>()
        );
        other.transaction(|other| {
            let taken = queue.on(other).get_many(60)?;
            let expected: Vec<_> = data[60..120].iter().collect();
            assert_eq!(taken.iter().map(|job| &job.data).collect::<Vec<_>>(), expected);
            let taken = queue.lease(60, PATIENCE, Wait::No)?;
            let expected: Vec<_> = data[120..150].iter().collect();
            assert_eq!(taken.iter().map(|job| &job.data).collect::<Vec<_>>(), expected);
            Ok(())
        })
    })
}

/// A wait repeats a take that has not looked at all due jobs. Each repetition would read all ready jobs.
#[test]
fn ready_jobs_of_keys_in_use_are_not_read_for_each_part_of_the_due_ones() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let queue = queue(&database)?;
    conn.batch_execute(PAGES)?;
    conn.batch_execute(
        "INSERT INTO pq.queue_keys (q_name, serial_key, lease) VALUES ('apples', 'busy', 0);
         INSERT INTO pq.queue (q_name, data, schedule_at, serial_key)
         SELECT 'apples', '1', now() - (60000 - number) * interval '1 ms', 'busy' FROM generate_series(1, 60000) AS number;
         INSERT INTO pq.queue (q_name, data, serial_key)
         SELECT 'apples', '1', CASE WHEN number = 30000 THEN 'free' ELSE 'busy' END
         FROM generate_series(1, 30000) AS number;
         ANALYZE pq.queue",
    )?;
    queue.set_limits(&Limits::new().running(9))?;
    let mut takes = 0;
    while count(&mut conn, "SELECT count(*) FROM pq.queue_leases")? == 0 {
        let pages = count(&mut conn, "SELECT public.pages()")?;
        takes += 1;
        assert!(takes > 2 || pages < 25_000, "take {takes} has read {pages} pages");
        assert!(takes < 9, "the job of the free key is not found");
    }
    assert!(takes > 2, "{takes}");
    Ok(())
}
