//! Jobs that kill the process of their worker.

use std::time::{Duration, Instant};

use pq_diesel::JobState;

use crate::child::{Child, Step, expire_leases, work_task};
use crate::common::{Outcome, PATIENCE};
use crate::{effects, setup};

/// The number of jobs beside the one that kills its worker.
const INNOCENT: usize = 200;

/// The maximum number of runs of that job. One is lost with its transaction, two are in leases of several jobs: 64 and
/// 8 at most. The last three are alone.
const MAX_RUNS: u32 = 6;

#[test]
fn a_job_that_kills_its_process_is_dead_after_a_bounded_number_of_runs_and_the_others_complete() -> Outcome {
    for transactional in [true, false] {
        let (database, pq) = setup()?;
        let mut steps = vec![Step::Nothing; INNOCENT];
        steps.insert(INNOCENT / 2, Step::KillAfter);
        let killer = work_task(&pq)?.call_many(steps)?[INNOCENT / 2].id;
        let (queue, mut conn) = (pq.queue::<()>("work")?, database.connect()?);
        let mut killed = 0;
        loop {
            let mut child = Child::spawn(&database, transactional)?;
            let begun = Instant::now();
            while child.is_running()? && queue.counts()?.live() > 0 {
                assert!(begun.elapsed() < PATIENCE, "jobs are left: {:?}", queue.counts()?);
                std::thread::sleep(Duration::from_millis(5));
            }
            if queue.counts()?.live() == 0 {
                break;
            }
            killed += 1;
            assert!(killed <= MAX_RUNS, "the job runs without limit");
            expire_leases(&mut conn)?;
        }
        let dead = queue.archived(JobState::Dead, None, 10)?;
        assert_eq!(dead.iter().map(|job| job.id).collect::<Vec<_>>(), [killer], "{dead:?}");
        let error = dead[0].error.clone().unwrap_or_default();
        assert!(error.contains("died 3 times while it ran"), "{error}");
        assert_eq!(dead[0].crashes, 3);
        let mut effects = effects(&database)?;
        let of_killer = effects.remove(&killer.0).unwrap_or_default();
        assert_eq!(of_killer.len(), if transactional { 0 } else { usize::try_from(killed)? });
        assert_eq!(effects.len(), INNOCENT);
        assert!(!transactional || effects.values().all(|attempts| attempts == &[1]), "{effects:?}");
    }
    Ok(())
}
