//! Owns: the tests of the catalogue, its lists and its slices.
//! Never: backends.
//! Next: nothing.

use super::*;

/// Backends by name and prefix.
fn plan(backends: &[(&str, &str)]) -> Plan {
    let backends = backends.iter().enumerate();
    Plan::bare(
        1,
        backends.map(|(id, (name, prefix))| BackendPlan::bare(id, name, prefix)).collect(),
    )
}

const INITIALIZE: &str = r#"{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"s","version":"1"}}"#;

fn list_of(member: &str, entries: &str) -> Vec<Vec<u8>> {
    vec![format!(r#"{{"{member}":[{entries}]}}"#).into_bytes()]
}

fn tools(plan: &Plan, id: BackendId, entries: &str) -> Option<Arc<Slice>> {
    let pages = Pages { tools: list_of("tools", entries), ..Pages::default() };
    Some(Arc::new(Slice::build(&plan.backends[id], INITIALIZE.as_bytes(), &pages).unwrap()))
}

fn resources(plan: &Plan, id: BackendId, uris: &[&str], templates: &[&str]) -> Option<Arc<Slice>> {
    let join = |key: &str, all: &[&str]| {
        let entries: Vec<_> =
            all.iter().map(|u| format!(r#"{{"{key}":"{u}","of":{id}}}"#)).collect();
        entries.join(",")
    };
    let pages = Pages {
        resources: list_of("resources", &join("uri", uris)),
        templates: list_of("resourceTemplates", &join("uriTemplate", templates)),
        ..Pages::default()
    };
    Some(Arc::new(Slice::build(&plan.backends[id], INITIALIZE.as_bytes(), &pages).unwrap()))
}

fn text(catalog: &Catalog, kind: ListKind) -> String {
    String::from_utf8(catalog.list(kind).to_vec()).unwrap()
}

#[test]
fn entries_keep_every_byte_but_the_name() {
    let plan = plan(&[("a", "a__")]);
    let mut catalog = Catalog::new(&plan);
    // Order of keys, space, number text beyond 2^53, escapes, unknown members, a nested name.
    let entry = r#"{ "x" : 9007199254740993 , "inputSchema":{"name":1e2,"$defs":{"z":{},"a":1.0}},"name" :"caf\u00e9\/\"q","title":"ü\ud83d\ude00","name2":null }"#;
    let expected = entry.replace(r#""name" :""#, r#""name" :"a__"#);
    catalog.set(0, tools(&plan, 0, entry));
    assert_eq!(text(&catalog, ListKind::Tools), format!(r#"{{"tools":[{expected}]}}"#));
    let slice = catalog.slice(0).unwrap();
    assert_eq!(slice.tools.find("café/\"q").unwrap(), expected.as_bytes());
    assert_eq!(slice.tools.find("a__café/\"q"), None);
    let all: Vec<_> = slice.tools.iter().collect();
    assert_eq!(all, [("café/\"q", expected.as_bytes())]);
}

#[test]
fn a_prefix_is_written_as_json_and_an_empty_one_not_at_all() {
    let plan = plan(&[("a", "a\"\\/"), ("b", "")]);
    let mut catalog = Catalog::new(&plan);
    catalog.set(0, tools(&plan, 0, r#"{"name":"x"}"#));
    catalog.set(1, tools(&plan, 1, r#"{"name":"y"}"#));
    let list = text(&catalog, ListKind::Tools);
    assert_eq!(list, r#"{"tools":[{"name":"a\"\\/x"},{"name":"y"}]}"#);
    let value: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(value["tools"][0]["name"], "a\"\\/x");
}

#[test]
fn lists_are_in_the_order_of_the_file_whoever_comes_first() {
    let plan = plan(&[("a", "a__"), ("b", "b__"), ("c", "c__")]);
    let mut catalog = Catalog::new(&plan);
    assert_eq!(text(&catalog, ListKind::Tools), r#"{"tools":[]}"#);
    assert_eq!(text(&catalog, ListKind::Templates), r#"{"resourceTemplates":[]}"#);
    catalog.set(2, tools(&plan, 2, r#"{"name":"2"},{"name":"1"}"#));
    catalog.set(0, tools(&plan, 0, r#"{"name":"x"}"#));
    catalog.set(1, tools(&plan, 1, ""));
    assert_eq!(
        text(&catalog, ListKind::Tools),
        r#"{"tools":[{"name":"a__x"},{"name":"c__2"},{"name":"c__1"}]}"#
    );
    catalog.set(0, None);
    assert_eq!(text(&catalog, ListKind::Tools), r#"{"tools":[{"name":"c__2"},{"name":"c__1"}]}"#);
}

#[test]
fn all_pages_are_joined() {
    let plan = plan(&[("a", "")]);
    let pages: Vec<Vec<u8>> = [
        r#"{"tools":[{"name":"1"},{"name":"2"}],"nextCursor":"x"}"#,
        r#"{"tools":[],"nextCursor":"y"}"#,
        r#" { "_meta":{"tools":[{"name":"no"}]}, "tools" : [ {"name":"3"} ] } "#,
        r#"{"tools":null}"#,
        r#"{}"#,
    ]
    .map(|page| page.as_bytes().to_vec())
    .into();
    let list = List::build(&plan.backends[0], ListKind::Tools, &pages).unwrap();
    let names: Vec<_> = list.iter().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(names, ["1", "2", "3"]);
    assert_eq!(&*list.text, br#"{"name":"1"},{"name":"2"},{"name":"3"}"#);
}

#[test]
fn what_nobody_could_call_is_left_out() {
    let plan = plan(&[("a", "a__")]);
    let entries = r#"{"name":"ok"},{"name":1},{},[],"x",null,{"name":""},{"name":"ok","second":1},{"name":"p","name":"q"},{"name":"p","n\u0061me":"q"},{"n\u0061me":"esc"}"#;
    let list = List::build(&plan.backends[0], ListKind::Tools, &list_of("tools", entries)).unwrap();
    let names: Vec<_> = list.iter().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(names, ["ok", "esc"]);
    assert_eq!(list.skipped(), 9);
    assert_eq!(list.find("esc").unwrap(), br#"{"n\u0061me":"a__esc"}"#);
}

#[test]
fn answers_out_of_protocol() {
    let plan = plan(&[("a", "")]);
    let build = |initialize: &str, tools: &str| {
        let pages = Pages { tools: vec![tools.as_bytes().to_vec()], ..Pages::default() };
        Slice::build(&plan.backends[0], initialize.as_bytes(), &pages)
    };
    assert!(build(INITIALIZE, "{}").is_ok());
    for (initialize, tools) in [
        ("{}", "{}"),
        (r#"{"protocolVersion":"2025-06-18"}"#, "{}"),
        (r#"{"protocolVersion":1,"capabilities":{}}"#, "{}"),
        ("[]", "{}"),
        (INITIALIZE, "[]"),
        (INITIALIZE, r#"{"tools":{}}"#),
        (INITIALIZE, r#"{"tools":[}"#),
        (INITIALIZE, ""),
    ] {
        let error = build(initialize, tools).expect_err(tools);
        assert_eq!(error.kind(), Kind::BadAnswer, "{initialize} {tools}");
    }
}

#[test]
fn what_initialize_said() {
    let plan = plan(&[("a", "")]);
    let initialize = r#"{"instructions":"say \"hi\"","capabilities":{"prompts":{ "x" : 1 },"logging":null},"serverInfo":{"name":"ü"},"protocolVersion":"2024-11-05"}"#;
    let slice = Slice::build(&plan.backends[0], initialize.as_bytes(), &Pages::default()).unwrap();
    assert_eq!(slice.revision, "2024-11-05");
    assert_eq!(slice.instructions.as_deref(), Some(r#"say "hi""#));
    assert_eq!(&*slice.server_info, r#"{"name":"ü"}"#);
    assert_eq!(&*slice.capabilities, r#"{"prompts":{ "x" : 1 },"logging":null}"#);
    assert!(slice.can("prompts"));
    assert!(!slice.can("logging"));
    assert!(!slice.can("tools"));
}

#[test]
fn one_list_is_fetched_anew() {
    let plan = plan(&[("a", "a__")]);
    let mut catalog = Catalog::new(&plan);
    let first = tools(&plan, 0, r#"{"name":"x"}"#);
    catalog.set(0, first.clone());
    let second = first
        .unwrap()
        .with_list(&plan.backends[0], ListKind::Prompts, &list_of("prompts", r#"{"name":"p"}"#))
        .unwrap();
    let changes = catalog.set(0, Some(Arc::new(second)));
    assert_eq!(changes, Changes { prompts: true, ..Changes::default() });
    assert_eq!(text(&catalog, ListKind::Prompts), r#"{"prompts":[{"name":"a__p"}]}"#);
    assert_eq!(text(&catalog, ListKind::Tools), r#"{"tools":[{"name":"a__x"}]}"#);
}

#[test]
fn changes_are_exact() {
    let plan = plan(&[("a", ""), ("b", "")]);
    let mut catalog = Catalog::new(&plan);
    let none = Changes::default();
    assert_eq!(catalog.set(0, None), none);
    assert_eq!(catalog.set(0, tools(&plan, 0, "")), none, "known now, but nothing to see");
    assert!(catalog.set(0, tools(&plan, 0, r#"{"name":"x"}"#)).tools);
    assert_eq!(catalog.set(0, tools(&plan, 0, r#"{"name":"x"}"#)), none, "the same again");
    assert!(catalog.set(0, tools(&plan, 0, r#"{"name":"x","description":""}"#)).tools);
    // Hidden by the first backend's, so nobody sees a difference.
    assert_eq!(catalog.set(1, tools(&plan, 1, r#"{"name":"x","other":1}"#)), none);
    assert!(catalog.set(0, None).tools, "now it is seen");
    assert!(text(&catalog, ListKind::Tools).contains("other"));
    let resources_only = Changes { resources: true, ..none };
    assert_eq!(catalog.set(0, resources(&plan, 0, &["a:1"], &[])), resources_only);
    assert_eq!(catalog.set(0, resources(&plan, 0, &["a:1"], &["a:{b}"])), resources_only);
    assert_eq!(catalog.set(0, resources(&plan, 0, &["a:1"], &["a:{b}"])), none);
    assert_eq!(catalog.set(0, None), resources_only);
}

#[test]
fn of_two_bare_names_the_first_in_the_file_wins() {
    let plan = plan(&[("a", ""), ("b", ""), ("git", "git__")]);
    let mut catalog = Catalog::new(&plan);
    catalog.set(1, tools(&plan, 1, r#"{"name":"x","of":"b"},{"name":"y","of":"b"}"#));
    assert_eq!(catalog.owner_of_name(ListKind::Tools, "x"), Some(1));
    assert_eq!(catalog.conflict_count(), 0);
    catalog.set(0, tools(&plan, 0, r#"{"name":"x","of":"a"}"#));
    assert_eq!(catalog.owner_of_name(ListKind::Tools, "x"), Some(0));
    assert_eq!(catalog.owner_of_name(ListKind::Tools, "y"), Some(1));
    assert_eq!(catalog.owner_of_name(ListKind::Tools, "z"), None);
    assert_eq!(catalog.owner_of_name(ListKind::Prompts, "x"), None);
    assert_eq!(
        text(&catalog, ListKind::Tools),
        r#"{"tools":[{"name":"x","of":"a"},{"name":"y","of":"b"}]}"#
    );
    let conflict =
        Conflict { kind: ListKind::Tools, key: "x".into(), owner: "a".into(), hidden: "b".into() };
    assert_eq!(catalog.conflicts().collect::<Vec<_>>(), [&conflict]);
    assert_eq!(catalog.new_conflicts().count(), 1);
    assert_eq!(conflict.to_string(), r#"tools/list: "x" of backend b is hidden by backend a"#);
    assert!(conflict.remedy().contains("prefix"));
    // Another change brings another conflict; the first is not news.
    catalog.set(0, tools(&plan, 0, r#"{"name":"y","of":"a"},{"name":"x","of":"a"}"#));
    assert_eq!(catalog.conflict_count(), 2);
    let news: Vec<_> = catalog.new_conflicts().map(|conflict| &*conflict.key).collect();
    assert_eq!(news, ["y"]);
    catalog.set(2, tools(&plan, 2, ""));
    assert_eq!(catalog.new_conflicts().count(), 0);
    assert_eq!(catalog.conflict_count(), 2);
    catalog.set(0, None);
    assert_eq!(catalog.conflict_count(), 0);
}

#[test]
fn nobody_takes_a_name_under_the_prefix_of_another() {
    let plan = plan(&[("sly", ""), ("git", "git__")]);
    let mut catalog = Catalog::new(&plan);
    catalog.set(0, tools(&plan, 0, r#"{"name":"git__push"},{"name":"git__"},{"name":"x"}"#));
    assert_eq!(text(&catalog, ListKind::Tools), r#"{"tools":[{"name":"git__"},{"name":"x"}]}"#);
    let conflict = catalog.conflicts().next().unwrap();
    assert_eq!((&*conflict.owner, &*conflict.hidden), ("git", "sly"));
    catalog.set(1, tools(&plan, 1, r#"{"name":"push"}"#));
    assert_eq!(
        text(&catalog, ListKind::Tools),
        r#"{"tools":[{"name":"git__"},{"name":"x"},{"name":"git__push"}]}"#
    );
    // Two backends with prefixes may call their own tools alike.
    assert_eq!(catalog.owner_of_name(ListKind::Tools, "push"), None);
}

#[test]
fn owners_of_resources() {
    let plan = plan(&[("a", "a__"), ("b", "b__"), ("c", "c__")]);
    let mut catalog = Catalog::new(&plan);
    catalog.set(0, resources(&plan, 0, &["a://1", "x://1"], &["t://{id}", "a://{+all}"]));
    catalog.set(1, resources(&plan, 1, &["b://1", "x://1", "a://2"], &["t://{id}", "b://{id}"]));
    assert_eq!(catalog.owner_of_uri("a://1"), Some(0));
    assert_eq!(catalog.owner_of_uri("x://1"), Some(0), "the first in the file");
    assert_eq!(catalog.owner_of_uri("a://2"), Some(1), "listed comes before a template");
    assert_eq!(catalog.owner_of_uri("a://3"), Some(0));
    assert_eq!(catalog.owner_of_uri("b://2"), Some(1));
    assert_eq!(catalog.owner_of_uri("b://2/3"), None);
    assert_eq!(catalog.owner_of_uri("c://1"), None);
    assert_eq!(catalog.contested_reads(), 0);
    assert_eq!(catalog.owner_of_uri("t://9"), Some(0));
    assert_eq!(catalog.contested_reads(), 1);
    let conflicts: Vec<_> = catalog.conflicts().map(|c| (c.kind, &*c.key)).collect();
    assert_eq!(conflicts, [(ListKind::Resources, "x://1"), (ListKind::Templates, "t://{id}")]);
    // URIs are not renamed, and each is listed once.
    assert_eq!(
        text(&catalog, ListKind::Resources),
        r#"{"resources":[{"uri":"a://1","of":0},{"uri":"x://1","of":0},{"uri":"b://1","of":1},{"uri":"a://2","of":1}]}"#
    );
    catalog.set(0, None);
    assert_eq!(catalog.owner_of_uri("x://1"), Some(1));
}

#[test]
fn conflicts_are_bounded() {
    let plan = plan(&[("a", ""), ("b", "")]);
    let mut catalog = Catalog::new(&plan);
    let names: Vec<_> =
        (0..CONFLICTS_KEPT_MAX + 5).map(|n| format!(r#"{{"name":"{n}"}}"#)).collect();
    catalog.set(0, tools(&plan, 0, &names.join(",")));
    catalog.set(1, tools(&plan, 1, &names.join(",")));
    assert_eq!(catalog.conflicts().count(), CONFLICTS_KEPT_MAX);
    assert_eq!(catalog.conflict_count(), CONFLICTS_KEPT_MAX + 5);
}

#[test]
fn capabilities_promise_what_an_unknown_backend_might_bring() {
    const ALL: &str = r#"{"tools":{"listChanged":true},"resources":{"listChanged":true,"subscribe":true},"prompts":{"listChanged":true},"logging":{},"completions":{},"tasks":{"list":{},"cancel":{},"requests":{"tools":{"call":{}}}}}"#;
    let plan = plan(&[("a", "a__"), ("b", "b__")]);
    let mut catalog = Catalog::new(&plan);
    assert_eq!(catalog.capabilities(), ALL);
    assert_eq!(catalog.unknown(), 2);
    catalog.set(0, tools(&plan, 0, ""));
    assert_eq!(catalog.capabilities(), ALL);
    catalog.set(1, tools(&plan, 1, ""));
    assert_eq!(catalog.unknown(), 0);
    assert_eq!(catalog.capabilities(), r#"{"tools":{"listChanged":true}}"#);
    // A template without the capability: some servers forget to say so.
    catalog.set(1, resources(&plan, 1, &[], &["a:{b}"]));
    assert_eq!(
        catalog.capabilities(),
        r#"{"tools":{"listChanged":true},"resources":{"listChanged":true}}"#
    );
    catalog.set(0, None);
    assert_eq!(catalog.capabilities(), ALL);
    let none = Catalog::new(&self::plan(&[]));
    assert_eq!(none.capabilities(), "{}");
}

#[test]
fn instructions_are_labelled_when_there_are_several_backends() {
    let with = |plan: &Plan, id: BackendId, text: &str| {
        let initialize =
            format!(r#"{{"protocolVersion":"x","capabilities":{{}},"instructions":"{text}"}}"#);
        let slice =
            Slice::build(&plan.backends[id], initialize.as_bytes(), &Pages::default()).unwrap();
        Some(Arc::new(slice))
    };
    let two = plan(&[("a", "a__"), ("b", "b__")]);
    let mut catalog = Catalog::new(&two);
    assert_eq!(catalog.instructions(), None);
    catalog.set(1, with(&two, 1, "Be\\nkind."));
    assert_eq!(catalog.instructions().unwrap(), "## b\n\nBe\nkind.");
    catalog.set(0, with(&two, 0, "Hi."));
    assert_eq!(catalog.instructions().unwrap(), "## a\n\nHi.\n\n## b\n\nBe\nkind.");
    let one = plan(&[("a", "a__")]);
    let mut catalog = Catalog::new(&one);
    catalog.set(0, with(&one, 0, "Hi."));
    assert_eq!(catalog.instructions().unwrap(), "Hi.");
    catalog.set(0, with(&one, 0, ""));
    assert_eq!(catalog.instructions(), None);
}

#[test]
fn cursors() {
    let cursor = |result: &str| {
        let found = next_cursor(result.as_bytes()).ok()?;
        Some(found.map(|span| span.of(result.as_bytes()).to_vec()))
    };
    assert_eq!(cursor(r#"{"tools":[]}"#), Some(None));
    assert_eq!(cursor(r#"{"nextCursor":null}"#), Some(None));
    assert_eq!(cursor(r#"{"tools":[],"nextCursor":"a\"b"}"#), Some(Some(br#""a\"b""#.to_vec())));
    assert_eq!(cursor(r#"{"nextCursor":5}"#), None);
    assert_eq!(cursor("[]"), None);
}

#[test]
fn a_slice_crosses_threads() {
    fn sendable<T: Send + Sync>() {}
    sendable::<Arc<Slice>>();
}
