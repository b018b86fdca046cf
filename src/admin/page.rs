//! Self-contained HTML pages: nothing is loaded from elsewhere.

/// A page with a title, what it needs of style beside that of all, and a body that is HTML already.
pub(super) fn page(title: &str, style: &str, body: &str) -> String {
    let title = escaped(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}{style}</style>\n\
         </head>\n<body>\n<h1>{title}</h1>\n{body}</body>\n</html>\n"
    )
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:64em;margin:2em auto;padding:0 1em;color:#222}\
    table{border-collapse:collapse;width:100%;margin:1em 0}\
    th,td{text-align:left;vertical-align:top;border-bottom:1px solid #ddd;padding:.3em .6em;overflow-wrap:anywhere}\
    td.n{text-align:right;font-variant-numeric:tabular-nums}\
    .equal{color:#14691f}.different{color:#a11212}.not_proved{color:#8a5a00}\
    @media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}th,td{border-color:#444}\
    .equal{color:#6c6}.different{color:#f77}.not_proved{color:#fb4}}";

/// Text as HTML.
pub(super) fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            other => html.push(other),
        }
    }
    html
}

/// A table of texts; without rows nothing.
pub(super) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let head: String = heads.iter().map(|head| format!("<th>{}</th>", escaped(head))).collect();
    let cell = |text: &String| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        format!("<td{}>{}</td>", if is_number { " class=\"n\"" } else { "" }, escaped(text))
    };
    let rows: String =
        rows.iter().map(|row| format!("<tr>{}</tr>\n", row.iter().map(cell).collect::<String>())).collect();
    format!("<table>\n<tr>{head}</tr>\n{rows}</table>\n")
}

/// A list of texts; without any nothing.
pub(super) fn list(items: &[String]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let items: String = items.iter().map(|item| format!("<li>{}</li>\n", escaped(item))).collect();
    format!("<ul>\n{items}</ul>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_users_wrote_becomes_markup() {
        let hostile = "<script>alert('x')</script> & \"y\"";
        let html =
            page(hostile, "", &(table(&["a"], &[vec![hostile.to_owned()]]) + &list(&[hostile.to_owned()])));
        assert!(!html.contains("<script>"), "{html}");
        assert_eq!(html.matches("&lt;script&gt;alert(&#39;x&#39;)").count(), 4);
        assert!(table(&["a"], &[]).is_empty() && list(&[]).is_empty());
    }
}
