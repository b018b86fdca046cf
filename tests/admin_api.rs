//! The admin API over a fake engine, through real sockets.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod fake_admin;

use std::time::Duration;

use bytes::Bytes;
use fake_admin::Server;
use hyper::http::{HeaderMap, HeaderName, HeaderValue, Method};
use reshard::cli::client::{Answer, Client};
use reshard::migration::control::{ControlError, Refusal, VerificationReport};
use serde_json::{Value, json};

struct Api {
    server: Server,
}

impl Api {
    async fn start() -> Self {
        Self { server: Server::start().await }
    }

    /// An API with one migration, `orders`, at epoch 1.
    async fn with_orders() -> Self {
        let api = Self::start().await;
        let new = json!({"name": "orders", "namespaces": [{"namespace": "shop.orders"}]});
        assert_eq!(api.send("POST", "/v1/migrations", Some(new), &[]).await.status, 201);
        api
    }

    async fn raw(&self, method: &str, path: &str, body: Option<Bytes>, headers: &[(&str, &str)]) -> Answer {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect();
        let client = Client::new(&self.server.url(), headers).unwrap();
        client.send(Method::from_bytes(method.as_bytes()).unwrap(), path, body).await.unwrap()
    }

    async fn send(&self, method: &str, path: &str, body: Option<Value>, headers: &[(&str, &str)]) -> Answer {
        self.raw(method, path, body.map(|body| body.to_string().into()), headers).await
    }

    /// The problem that `body` causes; checks what all problems have in common.
    async fn problem(&self, method: &str, path: &str, body: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        let body = (!body.is_empty()).then(|| Bytes::copy_from_slice(body.as_bytes()));
        problem(&self.raw(method, path, body, headers).await)
    }

    async fn code(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let (status, problem) = self.problem(method, path, body, &[]).await;
        (status, problem["code"].as_str().unwrap().to_owned())
    }

    fn last_call(&self) -> String {
        self.server.control.calls().pop().unwrap()
    }
}

fn json(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers[name].to_str().unwrap()
}

fn problem(answer: &Answer) -> (u16, Value) {
    let value = json(answer);
    assert_eq!(header(answer, "content-type"), "application/problem+json");
    assert_eq!(value["status"], answer.status.as_u16());
    assert_eq!(value["type"], format!("urn:reshard:problem:{}", value["code"].as_str().unwrap()));
    assert!(!value["title"].as_str().unwrap().is_empty());
    (answer.status.as_u16(), value)
}

#[tokio::test]
async fn migrations_are_created_listed_and_shown() {
    let api = Api::with_orders().await;
    assert_eq!(api.last_call(), "api: create orders");
    let list = json(&api.send("GET", "/v1/migrations", None, &[]).await);
    assert_eq!(list["migrations"][0]["name"], "orders");
    let one = api.send("GET", "/v1/migrations/orders", None, &[]).await;
    assert_eq!(header(&one, "etag"), "\"1\"");
    assert_eq!(json(&one), list["migrations"][0]);
}

#[tokio::test]
async fn creating_answers_with_its_place() {
    let api = Api::start().await;
    let new = json!({"name": "orders", "namespaces": []});
    let answer = api.send("POST", "/v1/migrations", Some(new), &[("x-reshard-actor", "ann")]).await;
    assert_eq!((answer.status.as_u16(), header(&answer, "location")), (201, "/v1/migrations/orders"));
    assert_eq!(api.last_call(), "ann: create orders");
}

#[tokio::test]
async fn every_step_reaches_the_engine() {
    let api = Api::with_orders().await;
    let steps = [
        ("POST", "start", None, "start orders"),
        ("POST", "pause", None, "pause orders"),
        ("POST", "resume", Some(json!({})), "resume orders"),
        ("POST", "verify", None, "verify orders"),
        ("PUT", "reads", Some(json!({"percent": 5})), "reads orders 5"),
        ("PUT", "reads", Some(json!({"percent": 0.1})), "reads orders 0.1"),
        ("PUT", "writes", Some(json!({"percent": 100})), "writes orders 100 None None"),
        ("PUT", "writes", Some(json!({"percent": 5, "max_pause_ms": 200})), "writes orders 5 Some(200) None"),
        (
            "PUT",
            "writes",
            Some(json!({"percent": 5, "end_transactions_after": 2})),
            "writes orders 5 None Some(2)",
        ),
        ("PUT", "throttle", Some(json!({"documents_per_second": 10})), "throttle orders Some(10.0)"),
        ("PUT", "throttle", Some(json!({})), "throttle orders None"),
        ("POST", "rollback", None, "rollback orders"),
        (
            "POST",
            "bypass-writes/acknowledge",
            Some(json!({"reason": "x", "up_to": 5})),
            "acknowledge-bypass orders Some(5) x",
        ),
        ("PUT", "shadow", Some(json!({"percent": 2.5})), "shadow orders 2.5 %"),
        (
            "PUT",
            "shadow",
            Some(json!({"percent": 1, "show_values": true, "reset": true})),
            "shadow orders 1 %, with values, forgetting what was found",
        ),
        ("PUT", "rehearsal", Some(json!({"factor": 1.5})), "rehearse 1.5, 10 minutes orders"),
        ("PUT", "rehearsal", Some(json!({"factor": 0, "minutes": 5})), "rehearse 0 orders"),
        ("POST", "complete", None, "complete false None orders"),
        ("POST", "complete", Some(json!({"force": true, "reason": "x"})), "complete true Some(\"x\") orders"),
        ("POST", "abort", None, "abort orders"),
        ("POST", "drop-old", None, "drop-old orders"),
    ];
    for (method, step, body, call) in steps {
        let answer = api.send(method, &format!("/v1/migrations/orders/{step}"), body, &[]).await;
        assert_eq!(answer.status, 200, "{step}: {answer:?}");
        assert_eq!(api.last_call(), format!("api: {call}"));
    }
    let preflight = api.send("POST", "/v1/migrations/orders/preflight", None, &[]).await;
    assert_eq!(json(&preflight), json!({"ok": true, "findings": []}));
}

#[tokio::test]
async fn insight_is_given() {
    let api = Api::with_orders().await;
    for (resource, pointer, expected) in [
        ("progress", "/blocked_by/0", json!("the copy is not finished")),
        ("conflicts", "/conflicts/0/tries", json!(3)),
        ("mismatches", "/mismatches/0/kind", json!("content")),
        ("bypass-writes", "/writes/0/number", json!(5)),
        ("bypass-writes?before=3&limit=10", "/writes/0/number", json!(2)),
        ("events", "/events/0/who", json!("ann")),
        ("progress", "/shadow_differences", json!(1)),
        ("diffs", "/shapes/0/differences/type", json!(1)),
        ("diffs?after=3&limit=10", "/next", json!(13)),
        ("diffs?format=json", "/shadow_compared", json!(10)),
        ("progress", "/rehearsal_reads", json!(30)),
        ("rehearsal", "/ended", json!("its time is over")),
    ] {
        let answer = api.send("GET", &format!("/v1/migrations/orders/{resource}"), None, &[]).await;
        assert_eq!(json(&answer).pointer(pointer), Some(&expected), "{resource}");
        let (status, _) = api.problem("GET", &format!("/v1/migrations/none/{resource}"), "", &[]).await;
        assert_eq!(status, 404);
    }
}

#[tokio::test]
async fn keys_are_pinned_unpinned_and_rolled_back() {
    let api = Api::with_orders().await;
    let (pins, back) = ("/v1/migrations/orders/pins", "/v1/migrations/orders/rollback");
    let keys = json!(["acme", { "$oid": "665f1c2ab7e4d3a1c0ffee00" }]);
    let answer = api.send("PUT", pins, Some(json!({"keys": keys, "to": "new"})), &[]).await;
    assert_eq!(header(&answer, "etag"), "\"2\"");
    let answer = json(&answer);
    assert_eq!((&answer["epoch"], &answer["pins"][0]["key"]), (&json!(2), &json!("\"acme\"")));
    assert_eq!(json(&api.send("GET", pins, None, &[]).await)["pins"][1]["in_force"], false);
    assert_eq!(json(&api.send("DELETE", pins, Some(json!({"keys": [7]})), &[]).await)["pins"], json!([]));
    assert_eq!(api.last_call(), "api: unpin orders [Number(7)] []");
    api.send("POST", back, Some(json!({"keys": [7]})), &[]).await;
    assert_eq!(api.last_call(), "api: pin orders [Number(7)] [] Old");
    api.send("POST", back, Some(json!({"ranges": ["eu"]})), &[]).await;
    assert_eq!(api.last_call(), "api: pin orders [] [\"eu\"] Old");
    api.send("PUT", pins, Some(json!({"ranges": ["eu", "late"], "to": "new"})), &[]).await;
    assert_eq!(api.last_call(), "api: pin orders [] [\"eu\", \"late\"] New");
    api.send("DELETE", pins, Some(json!({"ranges": ["eu"]})), &[]).await;
    assert_eq!(api.last_call(), "api: unpin orders [] [\"eu\"]");
    let listed = json(&api.send("GET", pins, None, &[]).await);
    assert_eq!(
        listed["pins"][2],
        json!({"range": "eu", "slot": 533, "to": "new", "in_force": true, "since": 1_700_000_000_000_i64})
    );
    assert_eq!(
        listed["ranges"][1],
        json!({
            "name": "late", "from": "eu-", "slot": 1022, "reads": "old", "writes": "old", "pinned": null,
            "reads_percent": 0.0, "writes_percent": 0.0,
            "operations": { "reads": { "old": 12, "new": 1300 }, "writes": { "old": 7, "new": 40 } },
        })
    );
    api.send("POST", back, Some(json!({})), &[]).await;
    assert_eq!(api.last_call(), "api: rollback orders");
    for body in [r#"{"keys":[7]}"#, r#"{"keys":[7],"to":"both"}"#, r#"{"range":"eu","to":"new"}"#] {
        assert_eq!(api.code("PUT", pins, body).await, (400, "invalid-body".to_owned()), "{body}");
    }
    assert_eq!(api.code("POST", back, r#"{"key":7}"#).await, (400, "invalid-body".to_owned()));
}

#[tokio::test]
async fn everything_is_rolled_back_without_new_and_what_only_that_has_is_listed() {
    let api = Api::with_orders().await;
    let (back, list) = ("/v1/migrations/orders/rollback", "/v1/migrations/orders/unreturned");
    let asked = json!({"without_new": {"reason": "a fire"}});
    let answer = json(&api.send("POST", back, Some(asked), &[]).await);
    assert_eq!((&answer["unreturned"], &answer["all_named"]), (&json!(2), &json!(true)));
    assert_eq!(api.last_call(), "api: rollback orders without new: a fire");
    for body in [r#"{"without_new":true}"#, r#"{"without_new":{}}"#] {
        assert_eq!(api.code("POST", back, body).await, (400, "invalid-body".to_owned()), "{body}");
    }
    let part = json!({"without_new": {"reason": "x"}, "keys": [7], "ranges": ["eu"]});
    json(&api.send("POST", back, Some(part), &[]).await);
    assert_eq!(api.last_call(), "api: rollback orders of [Number(7)] [\"eu\"] without new: x");
    let listed = json(&api.send("GET", &format!("{list}?limit=2"), None, &[]).await);
    assert_eq!(listed["documents"][1]["state"], "conflict");
    let next = listed["next"].as_str().unwrap();
    assert_eq!(json(&api.send("GET", &format!("{list}?after={next}"), None, &[]).await)["next"], json!(null));
    let known = Some(json!({"reason": "merged"}));
    let known = json(&api.send("POST", &format!("{list}/acknowledge"), known, &[]).await);
    assert_eq!(known["acknowledged"], "merged");
    for query in ["after=x", "limit=0", "before=1"] {
        let code = api.code("GET", &format!("{list}?{query}"), "").await;
        assert_eq!(code, (400, "invalid-query".to_owned()), "{query}");
    }
}

#[tokio::test]
async fn parts_of_the_data_plane_are_switched() {
    let api = Api::with_orders().await;
    let path = "/v1/migrations/orders/switches";
    let answer = api.send("PUT", path, Some(json!({"inline_mirror": false})), &[]).await;
    assert_eq!(
        json(&answer),
        json!({"inline_mirror": false, "read_routing": true, "shadow": true, "repair": true, "plan": true})
    );
    assert_eq!(api.last_call(), "api: switch inline-mirror off orders");
    let progress = json(&api.send("GET", "/v1/migrations/orders/progress", None, &[]).await);
    assert_eq!(progress["switches"]["inline_mirror"], false);
    let one = json!({"namespace": "shop.orders", "read_routing": false, "repair": true});
    api.send("PUT", path, Some(one), &[]).await;
    assert_eq!(api.last_call(), "api: switch read-routing off repair on for shop.orders orders");
    api.send("PUT", path, Some(json!({"namespace": "shop.orders", "plan": false})), &[]).await;
    assert_eq!(api.last_call(), "api: switch plan off for shop.orders orders");
    assert_eq!(api.code("PUT", path, r#"{"plans":true}"#).await, (400, "invalid-body".to_owned()));
}

#[tokio::test]
async fn a_page_of_a_list_is_asked_for_by_known_parameters() {
    let api = Api::with_orders().await;
    for (query, named) in
        [("before=x", "before"), ("limit=0", "limit"), ("limit=1001", "limit"), ("page=2", "page")]
    {
        for list in ["bypass-writes", "events"] {
            let path = format!("/v1/migrations/orders/{list}?{query}");
            let (status, problem) = api.problem("GET", &path, "", &[]).await;
            assert_eq!((status, &problem["code"]), (400, &json!("invalid-query")), "{query}");
            assert!(problem["detail"].as_str().unwrap().contains(named), "{problem}");
        }
    }
}

#[tokio::test]
async fn differences_come_as_a_table_and_a_page_too() {
    let api = Api::with_orders().await;
    for (format, kind) in [
        ("json", "application/json"),
        ("csv", "text/csv; charset=utf-8"),
        ("html", "text/html; charset=utf-8"),
    ] {
        let path = format!("/v1/migrations/orders/diffs?format={format}");
        let answer = api.send("GET", &path, None, &[]).await;
        assert_eq!(header(&answer, "content-type"), kind);
        let mut text = String::from_utf8(answer.body.to_vec()).unwrap();
        if format == "json" {
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            text = format!("{value:#}\n");
        }
        is_golden(&format!("tests/data/diffs.{format}"), &text);
    }
    let (status, problem) = api.problem("GET", "/v1/migrations/orders/diffs?format=xml", "", &[]).await;
    assert_eq!((status, &problem["code"]), (400, &json!("invalid-query")));
    assert!(problem["detail"].as_str().unwrap().contains("format"), "{problem}");
}

#[tokio::test]
async fn a_change_is_made_only_at_the_epoch_it_was_decided_on() {
    let api = Api::with_orders().await;
    let reads = "/v1/migrations/orders/reads";
    let body = json!({"percent": 5}).to_string();
    let (status, problem) = api.problem("PUT", reads, &body, &[("if-match", "\"7\"")]).await;
    assert_eq!((status, &problem["code"]), (412, &json!("epoch-changed")));
    for stale in ["W/\"1\"", "1", "\"0\", \"2\""] {
        assert_eq!(api.problem("PUT", reads, &body, &[("if-match", stale)]).await.0, 412, "{stale}");
    }
    assert_eq!(api.last_call(), "api: create orders");
    for (fresh, next) in [("\"1\"", "\"2\""), ("*", "\"3\""), ("\"9\", \"3\"", "\"4\"")] {
        let body = Some(Bytes::from(body.clone()));
        let answer = api.raw("PUT", reads, body, &[("if-match", fresh)]).await;
        assert_eq!((answer.status.as_u16(), header(&answer, "etag")), (200, next));
    }
}

#[tokio::test]
async fn of_two_changes_decided_on_one_epoch_only_one_is_made() {
    let api = Api::with_orders().await;
    *api.server.control.slow.lock().unwrap() = Duration::from_millis(50);
    let change = |percent: u8| {
        let api = &api;
        async move {
            let body = Some(json!({ "percent": percent }));
            let answer =
                api.send("PUT", "/v1/migrations/orders/writes", body, &[("if-match", "\"1\"")]).await;
            answer.status.as_u16()
        }
    };
    let (one, other) = tokio::join!(change(5), change(50));
    assert_eq!((one.min(other), one.max(other)), (200, 412));
}

#[tokio::test]
async fn each_refusal_has_its_status() {
    let api = Api::with_orders().await;
    for (kind, expected) in [
        (Refusal::Invalid, 400),
        (Refusal::NotFound, 404),
        (Refusal::Conflict, 409),
        (Refusal::Outdated, 412),
        (Refusal::Unavailable, 503),
    ] {
        let error = ControlError::new(kind, "some-code", "it does not fit").because(vec!["lag".to_owned()]);
        *api.server.control.refuse.lock().unwrap() = Some(error);
        let (status, problem) = api.problem("POST", "/v1/migrations/orders/start", "", &[]).await;
        assert_eq!(status, expected);
        assert_eq!(problem["detail"], "it does not fit");
        assert_eq!(problem["reasons"], json!(["lag"]));
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_a_problem() {
    let api = Api::with_orders().await;
    let orders = |rest: &str| format!("/v1/migrations/orders/{rest}");
    let cases = [
        ("POST", "/v1/migrations".to_owned(), "{", 400, "invalid-json"),
        ("POST", "/v1/migrations".to_owned(), "", 400, "body-missing"),
        ("POST", "/v1/migrations".to_owned(), "{}", 400, "invalid-body"),
        ("POST", "/v1/migrations".to_owned(), r#"{"name":"a","namespaces":[],"x":1}"#, 400, "invalid-body"),
        ("POST", orders("start"), r#"{"force":true}"#, 400, "invalid-body"),
        ("POST", orders("complete"), r#"{"farce":true}"#, 400, "invalid-body"),
        ("PUT", orders("reads"), r#"{"percent":101}"#, 400, "invalid-percent"),
        ("PUT", orders("reads"), r#"{"percent":-1}"#, 400, "invalid-percent"),
        ("PUT", orders("reads"), r#"{"percent":5.55}"#, 400, "invalid-percent"),
        ("PUT", orders("reads"), r#"{"percent":5,"max_pause_ms":1}"#, 400, "invalid-body"),
        ("PUT", orders("writes"), r#"{"percent":256}"#, 400, "invalid-percent"),
        ("PUT", orders("writes"), r#"{"percent":5,"max_pause_ms":49}"#, 400, "invalid-max-pause"),
        ("PUT", orders("writes"), r#"{"percent":5,"max_pause_ms":99999}"#, 400, "invalid-max-pause"),
        (
            "PUT",
            orders("writes"),
            r#"{"percent":5,"end_transactions_after":8}"#,
            400,
            "invalid-end-transactions",
        ),
        ("PUT", orders("throttle"), r#"{"documents_per_second":0}"#, 400, "invalid-throttle"),
        ("PUT", orders("throttle"), r#"{"speed":1}"#, 400, "invalid-body"),
        ("POST", orders("reads"), r#"{"percent":5}"#, 405, "wrong-method"),
        ("DELETE", "/v1/migrations/orders".to_owned(), "", 405, "wrong-method"),
        ("POST", orders("destroy"), "", 404, "unknown-path"),
        ("GET", "/v2".to_owned(), "", 404, "unknown-path"),
        ("GET", "/v1/migrations/%ff".to_owned(), "", 400, "invalid-name"),
        ("GET", "/v1/migrations/none".to_owned(), "", 404, "no-such-migration"),
        ("GET", "/v1/migrations/panic".to_owned(), "", 500, "internal"),
    ];
    for (method, path, body, status, code) in cases {
        assert_eq!(api.code(method, &path, body).await, (status, code.to_owned()), "{method} {path} {body}");
    }
    let large = format!("{{\"name\":\"{}\"}}", "a".repeat(64 * 1024));
    assert_eq!(api.code("POST", "/v1/migrations", &large).await, (413, "body-too-large".to_owned()));
    let (status, _) = api.problem("POST", &orders("start"), "", &[("x-reshard-actor", " ")]).await;
    assert_eq!(status, 400);
    assert_eq!(api.server.control.calls(), ["api: create orders"]);
}

#[tokio::test]
async fn a_problem_in_full() {
    let api = Api::with_orders().await;
    let (_, problem) = api.problem("PUT", "/v1/migrations/orders/writes", r#"{"percent":101}"#, &[]).await;
    let expected = json!({
        "type": "urn:reshard:problem:invalid-percent",
        "title": "Bad Request",
        "status": 400,
        "detail": "percent must be a number from 0 to 100 with at most one decimal, not 101",
        "code": "invalid-percent",
        "reasons": [],
    });
    assert_eq!(problem, expected);
}

#[tokio::test]
async fn a_wrong_method_names_the_right_ones() {
    let api = Api::with_orders().await;
    let answer = api.send("PATCH", "/v1/migrations", None, &[]).await;
    assert_eq!(header(&answer, "allow"), "GET,HEAD,POST");
}

#[tokio::test]
async fn web_pages_of_others_are_refused() {
    let api = Api::with_orders().await;
    let (status, problem) =
        api.problem("POST", "/v1/migrations/orders/abort", "", &[("origin", "http://evil.example")]).await;
    assert_eq!((status, &problem["code"]), (403, &json!("foreign-origin")));
    let (status, _) = api.problem("GET", "/v1/migrations", "", &[("host", "evil.example")]).await;
    assert_eq!(status, 403);
    assert_eq!(api.server.control.calls(), ["api: create orders"]);
}

#[tokio::test]
async fn a_change_goes_on_when_the_client_has_gone() {
    let api = Api::with_orders().await;
    *api.server.control.slow.lock().unwrap() = Duration::from_millis(200);
    let body = json!({"percent": 5});
    let request = api.send("PUT", "/v1/migrations/orders/writes", Some(body), &[]);
    assert!(tokio::time::timeout(Duration::from_millis(100), request).await.is_err());
    let made = || async { api.last_call() == "api: writes orders 5 None None" };
    reshard_testbed::wait_for("the change", Duration::from_secs(10), made).await.unwrap();
}

#[tokio::test]
async fn health_metrics_and_readiness() {
    let api = Api::start().await;
    assert_eq!(json(&api.send("GET", "/healthz", None, &[]).await), json!({"status": "ok"}));
    assert_eq!(json(&api.send("GET", "/readyz", None, &[]).await), json!({"status": "ready"}));
    *api.server.control.not_ready.lock().unwrap() = vec!["old has no primary".to_owned()];
    let (status, problem) = api.problem("GET", "/readyz", "", &[]).await;
    assert_eq!((status, &problem["reasons"]), (503, &json!(["old has no primary"])));
    let metrics = api.send("GET", "/metrics", None, &[]).await;
    assert!(header(&metrics, "content-type").starts_with("text/plain; version=0.0.4"));
    assert!(String::from_utf8_lossy(&metrics.body).contains("reshard_fake_total 3"));
}

/// `UPDATE_GOLDEN=1 cargo test --test admin_api` writes the file anew.
#[tokio::test]
async fn the_description_is_in_step_with_its_golden_file() {
    let api = Api::start().await;
    let served = json(&api.send("GET", "/openapi.json", None, &[]).await);
    is_golden("tests/data/openapi.json", &format!("{served:#}\n"));
}

/// `text` is what the file has.
fn is_golden(path: &str, text: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, text).unwrap();
    }
    assert!(text == std::fs::read_to_string(path).unwrap_or_default(), "{path} is not in step");
}

#[tokio::test]
async fn what_was_proved_is_given_as_json_and_as_a_page() {
    let api = Api::with_orders().await;
    let path = "/v1/migrations/orders/verification";
    let report = json(&api.send("GET", path, None, &[]).await);
    assert_eq!(report["conclusion"], "equal");
    // Whoever kept the JSON can compute its fingerprint again.
    let typed: VerificationReport = serde_json::from_value(report.clone()).unwrap();
    assert_eq!(json!(typed.sealed()), report);
    let page = api.send("GET", &format!("{path}?format=html"), None, &[]).await;
    assert!(header(&page, "content-type").starts_with("text/html"));
    is_golden("tests/data/verification.html", std::str::from_utf8(&page.body).unwrap());
    for query in ["format=pdf", "x=1"] {
        assert_eq!(api.code("GET", &format!("{path}?{query}"), "").await, (400, "invalid-query".to_owned()));
    }
}

#[tokio::test]
async fn how_to_compare_reaches_the_engine() {
    let api = Api::with_orders().await;
    let how = json!({"compare": "digest", "sample_percent": 5, "repair": false});
    let answer = json(&api.send("POST", "/v1/migrations/orders/verify", Some(how), &[]).await);
    assert_eq!(api.last_call(), "api: verify digest 5 % without repair orders");
    assert_eq!(answer["asked"]["compare"], "digest");
    let bad = r#"{"compare": "glance"}"#;
    let (status, code) = api.code("POST", "/v1/migrations/orders/verify", bad).await;
    assert_eq!((status, code.as_str()), (400, "invalid-body"));
}

#[tokio::test]
async fn the_description_names_the_refusals_of_each_operation() {
    let api = Api::start().await;
    let served = json(&api.send("GET", "/openapi.json", None, &[]).await);
    for (path, method, expected) in [
        ("/v1/migrations", "get", &["200", "503", "default"][..]),
        ("/v1/migrations", "post", &["201", "409", "503", "default"]),
        ("/v1/migrations/{name}", "get", &["200", "404", "503", "default"]),
        ("/v1/migrations/{name}/preflight", "post", &["200", "404", "409", "503", "default"]),
        ("/v1/migrations/{name}/writes", "put", &["200", "404", "409", "412", "503", "default"]),
        ("/healthz", "get", &["200", "default"]),
    ] {
        let responses = served["paths"][path][method]["responses"].as_object().unwrap();
        let mut told: Vec<_> = responses.keys().map(String::as_str).collect();
        told.sort_unstable();
        assert_eq!(told, expected, "{method} {path}");
    }
}

#[tokio::test]
async fn the_description_names_only_routes_that_exist_and_all_of_a_path() {
    let api = Api::with_orders().await;
    let served = json(&api.send("GET", "/openapi.json", None, &[]).await);
    for (path, item) in served["paths"].as_object().unwrap() {
        let path = path.replace("{name}", "orders");
        let described: Vec<_> = item.as_object().unwrap().keys().map(|key| key.to_uppercase()).collect();
        let answer = api.send("PATCH", &path, None, &[]).await;
        let allowed: Vec<_> = header(&answer, "allow").split(',').filter(|one| *one != "HEAD").collect();
        assert_eq!(allowed, described, "{path}");
    }
}
