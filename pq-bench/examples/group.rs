use diesel::PgConnection;
use pq_bench::*;
use pq_core::Wait;
use serde_json::value::RawValue;
use std::sync::Mutex;
fn main() -> anyhow::Result<()> {
    let bench = Bench::start()?;
    let queue = bench.queue("group")?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    let what: Vec<String> = std::env::args().skip(1).collect();
    let secs = std::time::Duration::from_secs_f64(1.5);
    for round in 0..2 {
        let _ = round;
        for what in &what {
            for clients in [1usize, 2, 4, 8, 16] {
                bench.refill(&queue, if what.starts_with("get") { 60_000 } else { 0 })?;
                let conns: Vec<Mutex<PgConnection>> =
                    (0..clients).map(|_| Ok(Mutex::new(bench.connect()?))).collect::<anyhow::Result<_>>()?;
                let lend = || conns.iter().find_map(|c| c.try_lock().ok()).unwrap();
                let r = match what.as_str() {
                    "put" => rate(clients, secs, || queue.put(&payload).map(drop))?,
                    "putconn" => rate(clients, secs, || queue.on(&mut lend()).put(&payload).map(drop))?,
                    "get" => rate(clients, secs, || queue.get(Wait::No).map(drop))?,
                    "getconn" => rate(clients, secs, || queue.on(&mut lend()).get().map(drop))?,
                    "pair" => rate(clients, secs, || {
                        queue.put(&payload)?;
                        queue.get(Wait::No).map(drop)
                    })?,
                    "pairconn" => rate(clients, secs, || {
                        queue.on(&mut lend()).put(&payload)?;
                        queue.on(&mut lend()).get().map(drop)
                    })?,
                    other => panic!("{other}"),
                };
                print!("{what} {clients}: {r:.0}   ");
            }
            println!();
        }
    }
    Ok(())
}
