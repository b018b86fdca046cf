//! The program itself, against the admin API of a fake engine.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod fake_admin;

use std::process::Output;

use fake_admin::Server;
use reshard::migration::control::{Control as _, ControlError, Refusal};
use serde_json::Value;
use tokio::process::Command;

/// Runs `reshard` with `arguments`; gives its exit code, standard output and standard error.
async fn reshard(admin: &str, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_reshard"))
        .args(arguments)
        .env("RESHARD_ADMIN", admin)
        .env("RESHARD_ACTOR", "ann")
        .output()
        .await
        .unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

struct Fixture(Server);

impl Fixture {
    async fn new(names: &[&str]) -> Self {
        let fixture = Self(Server::start().await);
        for name in names {
            let (code, ..) = fixture.run(&format!("create {name} --namespace shop.orders")).await;
            assert_eq!(code, 0);
        }
        fixture
    }

    async fn run(&self, arguments: &str) -> (i32, String, String) {
        let arguments: Vec<_> = ["migrate"].into_iter().chain(arguments.split(' ')).collect();
        reshard(&self.0.url(), &arguments).await
    }

    async fn says(&self, arguments: &str) -> String {
        let (code, out, error) = self.run(arguments).await;
        assert_eq!((code, error.as_str()), (0, ""), "{arguments}");
        out
    }
}

const PINS: &str = "\
KEY       SLOT  ON   IN FORCE                       SINCE
\"acme\"    533   new  yes                            2023-11-14 22:13:20Z
7         533   new  no: pin it again, or unpin it  2023-11-14 22:13:20Z
range eu  533   new  yes                            2023-11-14 22:13:20Z
";

const RANGES: &str = "
RANGE  KEYS          READS  WRITES  PINNED TO  READ                     WRITTEN
eu     \"eu-\"..\"eu.\"  new    new     new        12 on old, 1,300 on new  7 on old, 40 on new
late   \"eu-\"..       old    old                12 on old, 1,300 on new  7 on old, 40 on new
";

#[tokio::test]
async fn each_action_reaches_the_engine_and_says_what_happened() {
    let fixture = Fixture::new(&["orders"]).await;
    let view = |rest: &str| format!("orders: {rest}\n");
    for (arguments, said) in [
        ("start orders", view("copying, reads 0 % and writes 0 % on new (epoch 2)")),
        ("pause orders", view("copying (paused), reads 0 % and writes 0 % on new (epoch 3)")),
        ("resume orders", view("copying, reads 0 % and writes 0 % on new (epoch 4)")),
        ("reads orders 5", "reads: 5 % on new, in force everywhere (epoch 5)\n".to_owned()),
        (
            "writes orders 5 --max-pause-ms 200 --end-transactions-after 3",
            "writes: 5 % on new, in force everywhere (epoch 6); held 42 ms, 1 try\n".to_owned(),
        ),
        (
            "rollback orders",
            "old serves all reads and writes (epoch 7) after 57 ms; writes were held 42 ms\n".to_owned(),
        ),
        (
            "rollback orders --key 7",
            "old serves what was named, which is pinned to it (epoch 8) after 57 ms; writes were held 42 ms\n".to_owned(),
        ),
        (
            "pin orders \"acme\" 7 --to new",
            format!("in force everywhere (epoch 9) after 57 ms; writes were held 42 ms\n{PINS}a slot goes along\n"),
        ),
        ("pins orders", format!("{PINS}{RANGES}")),
        (
            "unpin orders 7",
            "in force everywhere (epoch 10) after 57 ms; writes were held 42 ms\nNothing is pinned.\na slot goes along\n".to_owned(),
        ),
        (
            "unpin orders --range eu",
            "in force everywhere (epoch 11) after 57 ms; writes were held 42 ms\nNothing is pinned.\na slot goes along\n".to_owned(),
        ),
        (
            "rollback orders --range eu --range late",
            "old serves what was named, which is pinned to it (epoch 12) after 57 ms; writes were held 42 ms\n".to_owned(),
        ),
        ("switch orders --read-routing off", "inline mirror on, read routing off, shadow reads on, repair on, plans on\n".to_owned()),
        (
            "throttle orders --documents-per-second 10",
            "the copy goes at most at 10 documents/s\n".to_owned(),
        ),
        ("start orders", view("copying, reads 0 % and writes 0 % on new (epoch 15); throttle 10 documents/s")),
        ("throttle orders --none", "the copy goes as fast as it can\n".to_owned()),
        ("verify orders", "verifying: 0 of 10 documents compared, no difference\n".to_owned()),
        ("verify orders --wait", "verifying: 10 of 10 documents compared, no difference\nverified: 10 of 10 documents compared, no difference\n".to_owned()),
        (
            "verify orders --digest --sample 5 --no-repair",
            "verifying 5 % of the ranges, by digest: 0 of 10 documents compared, no difference\n".to_owned(),
        ),
        ("report orders", include_str!("data/verification.txt").to_owned()),
        ("report orders --html", include_str!("data/verification.html").to_owned()),
        ("preflight orders", "It can start.\n".to_owned()),
        (
            "complete orders --force --reason x",
            view("completed, reads 0 % and writes 0 % on new (epoch 20)"),
        ),
        ("drop-old orders", view("completed, reads 0 % and writes 0 % on new (epoch 21)")),
        ("abort orders", view("aborted, reads 0 % and writes 0 % on new (epoch 22)")),
    ] {
        assert_eq!(fixture.says(arguments).await, said, "{arguments}");
    }
    assert!(fixture.0.control.calls().contains(&"ann: writes orders 5 Some(200) Some(3)".to_owned()));
    assert!(fixture.0.control.calls().contains(&"ann: pin orders [Number(7)] [] Old".to_owned()));
    fixture.says("switch orders --repair off --shadow off --namespace shop.orders").await;
    fixture.says("switch orders --plan off --namespace shop.orders").await;
    for call in [
        "ann: unpin orders [] [\"eu\"]",
        "ann: pin orders [] [\"eu\", \"late\"] Old",
        "ann: switch shadow off repair off for shop.orders orders",
        "ann: switch plan off for shop.orders orders",
    ] {
        assert!(fixture.0.control.calls().contains(&call.to_owned()), "{call}");
    }
    assert!(fixture.0.control.calls().contains(&"ann: complete true Some(\"x\") orders".to_owned()));
}

#[tokio::test]
async fn a_plan_moves_percentages_or_a_range() {
    let fixture = Fixture::new(&["orders"]).await;
    let said = fixture.says("ramp start orders --range eu --dwell-seconds 60").await;
    assert!(said.contains("on new; moves range eu; held 12 of 60 s"), "{said}");
    let said = fixture.says("ramp start orders --reads 5,100 --dwell-seconds 60").await;
    assert!(said.contains("on new; steps 5/0 100/0; held 12 of 60 s"), "{said}");
    let line = |said: &str, begin: &str| said.lines().find(|line| line.starts_with(begin)).map(str::to_owned);
    let left = line(&said, "10/0").unwrap();
    assert!(left.contains("2023-11-14 22:13:20") && left.contains("2023-11-14 22:18:20"), "{said}");
    assert!(line(&said, "25/0").unwrap().ends_with("it is there"), "{said}");
    let said = fixture.says("ramp decisions orders").await;
    assert!(line(&said, "7 ").unwrap().contains("2023-11-14 22:08:20"), "{said}");
}

#[tokio::test]
async fn a_rollback_without_new_says_what_is_left_behind() {
    let fixture = Fixture::new(&["orders", "returning"]).await;
    assert_eq!(
        fixture.says("rollback orders --without-new fire").await,
        "old serves all reads and writes (epoch 2) after 57 ms; writes were held 42 ms\n\
         of 2 documents only new may have the last acknowledged write: see unreturned orders. They come back when new is \
         there again\n"
    );
    assert!(fixture.0.control.calls().contains(&"ann: rollback orders without new: fire".to_owned()));
    let part = fixture.says("rollback orders --range eu --key 7 --without-new fire").await;
    assert!(part.starts_with("old serves what was named, which is pinned to it (epoch 3)"), "{part}");
    assert!(part.contains("of 2 documents only new may have the last acknowledged write"), "{part}");
    let call = "ann: rollback orders of [Number(7)] [\"eu\"] without new: fire".to_owned();
    assert!(fixture.0.control.calls().contains(&call));
    let rows = "\
COLLECTION   KEY  STATE         WHY
shop.orders  1    brought back  
shop.orders  2    conflict      the application has written it on old since
";
    let says = async |arguments| {
        let said = fixture.says(arguments).await;
        said.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    };
    let rows: Vec<_> = rows.lines().map(str::trim_end).collect();
    assert_eq!(says("unreturned orders").await, rows.join("\n"));
    let next = "0".repeat(32);
    assert!(says("unreturned orders --limit 2").await.ends_with(&format!("There are more: --after {next}")));
    assert_eq!(
        fixture.says("unreturned orders --acknowledge merged").await,
        "what only new had is back: 2 named, 1 brought back, 1 changed on both; acknowledged: merged\n"
    );
    assert!(fixture.says("status returning").await.contains(
        "  returned  new is there: bringing back what only it has: 3 named, 1 brought back, 1 changed on both (not all \
         could be named); process p: it is alive\n"
    ));
}

#[tokio::test]
async fn a_layout_is_given_on_the_command_line() {
    let fixture = Fixture::new(&[]).await;
    let zone = r#"{"zone":"eu","min":{"r":"eu","n":{"$minKey":1}},"max":{"r":"eu","n":{"$maxKey":1}},"shards":["s0"]}"#;
    fixture
        .says(&format!(
            "create laid-out --namespace shop.o --shard-key shop.o=r:1,n:1 --initial-chunks shop.o=12 \
             --route-key shop.o=customer_id --zone shop.o={zone} --range few=0..10 --range late=10.."
        ))
        .await;
    let known = fixture.0.control.get("laid-out").await.unwrap();
    let spec = serde_json::to_value(&known.namespaces[0]).unwrap();
    assert_eq!(spec["initial_chunks"], 12);
    assert_eq!(spec["route_key"], "customer_id");
    assert_eq!(spec["zones"][0], serde_json::from_str::<serde_json::Value>(zone).unwrap());
    let ranges =
        serde_json::to_value(known.ranges.iter().map(|view| &view.range).collect::<Vec<_>>()).unwrap();
    assert_eq!(
        ranges,
        serde_json::json!([{ "name": "few", "from": 0, "to": 10 }, { "name": "late", "from": 10 }])
    );
    for (option, told) in [
        ("--initial-chunks shop.o=many", "no number of chunks"),
        ("--initial-chunks shop.x=2", "shop.x is no --namespace"),
        ("--route-key shop.o=a.b", "only a field of the top level"),
        ("--route-key shop.x=a", "shop.x is no --namespace"),
        ("--zone shop.o={}", "missing field `zone`"),
        ("--range few=0", "is no range: write FROM..TO"),
    ] {
        let (code, _, error) = fixture.run(&format!("create wrong --namespace shop.o {option}")).await;
        assert_eq!(code, 2, "{option}");
        assert!(error.contains(told), "{option}: {error}");
    }
}

#[tokio::test]
async fn status_of_all_and_of_one() {
    let fixture = Fixture::new(&[]).await;
    assert!(fixture.says("status").await.starts_with("No migrations. Make one: "));
    fixture.says("create orders --namespace shop.orders --namespace shop.items").await;
    let expected = "\
NAME    PHASE    READS  WRITES  EPOCH  NAMESPACES
orders  created  0 %    0 %     1      shop.orders, shop.items
";
    assert_eq!(fixture.says("status").await, expected);
    let expected = "\
orders: created
  traffic   reads 0 % and writes 0 % on new (epoch 1)
  copy      [##########----------] 50 %  1,200 of 2,400 documents, 12.0 MB of 24.0 MB
  rate      100 documents/s, 1.0 MB/s; about 1 min 15 s left
  lag       old to new 0.2 s, new to old unknown; old's oplog keeps 1 d 1 h
  streams   7 converged, 0 repaired, 1 mirror writes made up for, 0 conflicts; 30 targeted reads, 4 broadcast reads
  pinned    1 to old, 2 to new; 1 not in force yet, see pins
  switched  inline mirror on, read routing on, shadow reads on, repair on, plans on
  throttle  none
  violated  invariants did not hold 2 times; see cut-over and the log
  bypass    2 writes past the proxy in 24 h, 5 in all
  shadow    2.5 % of reads; 10 compared, 1 differ for good, 1 differed for a moment; 2 nondeterministic, 0 unsettled, \
0 failed, 4 dropped, 3 skipped
  rehearsed 1.5 x the reads of old; 30 answered, 1 failed, 2 dropped, 3 never repeated
  verified  verified: 10 of 10 documents compared, no difference
  checked   no part by itself
  cut-over  not yet
            - the copy is not finished
  ranges    eu on new (pinned), late on old
  placed    shop.orders has no shard_key; its primary shard on new is s1; shop.orders is divided by its route_key customer_id
";
    assert_eq!(fixture.says("status orders").await, expected);
    fixture.says("create behind --namespace shop.c").await;
    let behind = fixture.says("status behind").await;
    let line = "  lag       old to new 0.2 s, new to old unknown; old's oplog keeps 1 d 1 h; following old will never \
                catch up\n";
    assert!(behind.contains(line), "{behind}");
}

#[tokio::test]
async fn watching_ends_when_it_is_over() {
    let fixture = Fixture::new(&["orders", "ready"]).await;
    fixture.says("start orders").await;
    let out = fixture.says("status orders --watch --until copying").await;
    let line = "orders: copying [##########----------] 50 %, 100 documents/s, 1.0 MB/s, 1 min 15 s left, \
                lag 0.2 s, reads 0 % writes 0 %\norders: copying\n";
    assert!(out.starts_with(line), "{out}");
    // Copying still; what counts is that nothing blocks.
    fixture.says("start ready").await;
    assert!(fixture.says("status ready --watch --until ready").await.contains("cut-over  ready"));
    fixture.says("abort orders").await;
    assert_eq!(fixture.run("status orders --watch --until ready").await.0, 1, "it never was");
    assert_eq!(fixture.run("status orders --watch").await.0, 0);
    assert_eq!(fixture.run("status orders --watch --until synced").await.0, 1, "it never got there");
}

#[tokio::test]
async fn lists_are_tables() {
    let fixture = Fixture::new(&["orders"]).await;
    assert_eq!(
        fixture.says("conflicts orders").await,
        "NAMESPACE    KEY           SINCE                 TRIES  ERROR\n\
         shop.orders  {\"$oid\":\"1\"}  1970-01-01 00:00:00Z  3      E11000 duplicate key\n"
    );
    assert!(fixture.says("mismatches orders").await.contains("shop.orders  1    content  a.b     yes"));
    let bypass = fixture.says("bypass orders --before 4 --limit 1").await;
    assert!(bypass.starts_with("2 writes past the proxy in 24 h, 5 in all\n"), "{bypass}");
    assert!(
        bypass.contains("old shop.orders  1    update  {\"_id\":1}") && bypass.contains("--before 3"),
        "{bypass}"
    );
    assert_eq!(
        fixture.says("acknowledge-bypass orders --reason known --up-to 5").await,
        "acknowledged 2 writes to old, up to number 5, the last shop.orders, _id 1\n"
    );
    let told = fixture.says("rehearse orders 1.5 --minutes 10").await;
    assert!(
        told.contains("1.5 x the reads of old; 30 answered, 1 failed, 2 dropped, 3 never repeated"),
        "{told}"
    );
    assert!(fixture.says("rehearse orders").await.contains("ended 1970-01-01 00:10:00Z: its time is over"));
    let diffs = fixture.says("diffs orders --limit 1").await;
    assert!(diffs.contains("1.0,2.0,4.0 / 1.0,2.0,4.0  {\"a\": 1}"), "{diffs}");
    assert!(
        diffs.contains("changed _id 1 (served by old)\n    address.zip type: old Int32, new String"),
        "{diffs}"
    );
    assert!(
        diffs.contains(
            "00000000000000ab: old uses an index, 1 examined; new scans the whole collection, 90 examined, asks all shards"
        ),
        "{diffs}"
    );
    assert!(diffs.contains("skipped 3: joins") && diffs.contains("More: --after 1"), "{diffs}");
    assert!(fixture.says("diffs orders --csv").await.starts_with("shape,namespace,"));
    assert!(fixture.says("diffs orders --html").await.starts_with("<!doctype html>"));
    assert_eq!(
        fixture.says("shadow orders 2.5 --show-values").await,
        "2.5 % of the reads also run on the other cluster; examples show values\n"
    );
    assert!(fixture.says("events orders").await.ends_with("ann  start  created -> copying  ok (57 ms)\n"));
    assert!(fixture.says("events orders --before 40 --limit 2").await.ends_with("More: --before 42\n"));
}

#[tokio::test]
async fn json_is_the_answer_of_the_api() {
    let fixture = Fixture::new(&["orders"]).await;
    let view: Value = serde_json::from_str(&fixture.says("start orders --json").await).unwrap();
    assert_eq!((&view["phase"], &view["epoch"]), (&"copying".into(), &2.into()));
    let (code, out, error) = fixture.run("start none --json").await;
    let problem: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, problem["status"].as_u64(), error.as_str()), (1, Some(404), ""));
}

#[tokio::test]
async fn exit_codes() {
    let fixture = Fixture::new(&["orders", "standalone", "different"]).await;
    let (code, _, error) = fixture.run("start none").await;
    assert_eq!((code, error.as_str()), (1, "Not Found (no-such-migration): there is no migration none\n"));

    let refuse = |kind, code| {
        let reasons = vec!["lag is 9 s".to_owned(), "no verification".to_owned()];
        let error = ControlError::new(kind, code, "not now").because(reasons);
        *fixture.0.control.refuse.lock().unwrap() = Some(error);
    };
    refuse(Refusal::Conflict, "gates");
    let (code, _, error) = fixture.run("writes orders 5").await;
    assert_eq!(
        (code, error.as_str()),
        (1, "Conflict (gates): not now\n  - lag is 9 s\n  - no verification\n")
    );
    refuse(Refusal::Invalid, "invalid-migration");
    assert_eq!(fixture.run("create nonsense --namespace shop").await.0, 2);
    refuse(Refusal::Unavailable, "no-primary");
    assert_eq!(fixture.run("writes orders 5").await.0, 3);

    let (code, out, _) = fixture.run("preflight standalone").await;
    let findings =
        "refused  cluster: old is not a replica set (no-oplog)\n         restart it with --replSet\n";
    assert_eq!((code, out), (1, format!("{findings}It cannot start.\n")));
    assert_eq!(fixture.run("verify different --wait").await.0, 1);
    assert_eq!(fixture.run("start orders --epoch 7").await.0, 1);
    assert_eq!(fixture.run("start orders --epoch 1").await.0, 0);

    for usage in [
        "reads orders 101",
        "create x",
        "status --watch",
        "complete orders --force",
        "dance",
        "throttle orders",
        "throttle orders --documents-per-second 0",
        "throttle orders --none --documents-per-second 5",
        "writes orders 5 --max-pause-ms 49",
    ] {
        assert_eq!(fixture.run(usage).await.0, 2, "{usage}");
    }
    let (code, _, error) = fixture.run("start orders --admin ftp://x").await;
    assert_eq!(code, 2, "{error}");
}

#[tokio::test]
async fn nobody_answers() {
    let (code, _, error) = reshard("http://127.0.0.1:1", &["migrate", "status"]).await;
    assert_eq!(code, 3);
    assert!(error.starts_with("no answer from http://127.0.0.1:1: Connection refused"), "{error}");
    assert!(error.contains("is reshard running there?"), "{error}");
}

#[tokio::test]
async fn a_healthcheck_tells_whether_the_process_can_serve() {
    let fixture = Fixture::new(&[]).await;
    let url = fixture.0.url();
    assert_eq!(reshard(&url, &["healthcheck"]).await, (0, "ready\n".to_owned(), String::new()));
    fixture.0.control.not_ready.lock().unwrap().push("old does not answer".to_owned());
    let (code, _, error) = reshard("", &["healthcheck", "--admin", &url]).await;
    assert_eq!(code, 3);
    assert!(error.ends_with("not ready to serve\n  - old does not answer\n"), "{error}");
    assert_eq!(reshard("http://127.0.0.1:1", &["healthcheck"]).await.0, 3);
}

#[tokio::test]
async fn help_documents_the_exit_codes() {
    for arguments in [&["--help"][..], &["migrate", "--help"]] {
        let (code, out, _) = reshard("http://127.0.0.1:1", arguments).await;
        assert_eq!(code, 0);
        assert!(out.contains("3  unavailable: no connection"), "{out}");
    }
}

#[tokio::test]
async fn configurations_are_checked() {
    let check = async |file: &str| reshard("", &["check-config", "--config", file]).await;
    let (code, out, _) = check("config/example.toml").await;
    let expected = "\
config/example.toml: good
  listen  127.0.0.1:27017
  old     mongodb://127.0.0.1:27018
  new     mongodb://127.0.0.1:27019
  admin   http://127.0.0.1:8080
";
    assert_eq!((code, out.as_str()), (0, expected));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("r.toml");
    let listeners = "[listeners.legacy]\naddress = \"127.0.0.1:1\"\nface = \"replica-set\"\nset_name = \"rs0\"\n\
                     host = \"db1:1\"\nsecondaries = [{ address = \"127.0.0.1:2\" }]\n\
                     [listeners.pods]\naddress = \"127.0.0.1:3\"\nface = \"load-balanced\"\n";
    let example = std::fs::read_to_string("config/example.toml").unwrap();
    std::fs::write(&file, format!("{example}{listeners}")).unwrap();
    let (code, out, error) = check(file.to_str().unwrap()).await;
    let expected = "  listen  127.0.0.1:27017
  legacy  127.0.0.1:1 (replica-set rs0, db1:1)
          127.0.0.1:2 (secondary, by its address)
  pods    127.0.0.1:3 (load-balanced)
  old ";
    assert!(code == 0 && out.contains(expected), "{out}{error}");
    let (code, out, error) = check("Cargo.toml").await;
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(
        error.starts_with("Cargo.toml:1: workspace: unknown section; known here: listen, listeners"),
        "{error}"
    );
    let (code, _, error) = reshard("", &["serve", "--config", "Cargo.toml"]).await;
    assert_eq!(code, 2, "{error}");
}

#[tokio::test]
async fn an_address_in_use_is_told_with_its_section_and_the_way_out() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("r.toml");
    let file = file.to_str().unwrap();
    for (listen, admin, section) in [
        (address.to_string(), "127.0.0.1:0".to_owned(), "listen"),
        ("127.0.0.1:0".to_owned(), address.to_string(), "admin"),
    ] {
        let config = format!(
            "[listen]\naddress = \"{listen}\"\n[old]\nuri = \"mongodb://127.0.0.1:1/\"\n\
             [admin]\naddress = \"{admin}\"\n"
        );
        std::fs::write(file, config).unwrap();
        let (code, _, error) = reshard("", &["serve", "--config", file]).await;
        let told = format!("[{section}] address: cannot listen on {address}: Address already in use");
        assert!(code == 1 && error.contains(&told) && error.contains("give it a free one"), "{code} {error}");
    }
}

/// A plain proxy whose cluster has never answered keeps its clients waiting.
#[tokio::test]
async fn a_process_whose_old_cluster_never_answered_is_not_ready() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("r.toml");
    let config = format!(
        "[listen]\naddress = \"127.0.0.1:0\"\n[old]\nuri = \"mongodb://127.0.0.1:1/\"\n\
         [admin]\naddress = \"{free}\"\n"
    );
    std::fs::write(&file, config).unwrap();
    let mut served = Command::new(env!("CARGO_BIN_EXE_reshard"))
        .args(["serve", "--config", file.to_str().unwrap()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let url = format!("http://{free}");
    let says = async || reshard(&url, &["healthcheck"]).await;
    let not_ready = async || {
        let (code, _, error) = says().await;
        code == 3 && error.contains("has not been read yet")
    };
    reshard_testbed::wait_for("the process to say why", std::time::Duration::from_secs(30), not_ready)
        .await
        .unwrap();
    // Whether old is part of a migration is not known, and so not whether it may be served alone.
    let (code, _, error) = reshard(&url, &["migrate", "status"]).await;
    assert!(code != 0, "{code} {error}");
    served.kill().await.unwrap();
}
