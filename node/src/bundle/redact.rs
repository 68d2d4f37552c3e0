//! Takes out of a text what opens a door, should it have got into a log or an error: tokens, keys, passwords in addresses.
//! Nothing of the kind is collected; this is the second lock.

/// What stands in its place.
const LEFT_OUT: &str = "<left out>";

/// A private key or certificate as PEM, and as base64 of it.
const PEM: &str = "-----BEGIN";
const PEM_END: &str = "-----END";
const PEM_AS_BASE64: &str = "LS0tLS1CRUdJTi";
/// How a token of JSON begins (`{"` in base64).
const TOKEN: &str = "eyJ";
/// Shorter ones are words.
const SHORTEST_TOKEN: usize = 20;

/// The text without it.
#[must_use]
pub fn redact(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, secret)) = next(rest) {
        clean += &rest[..before];
        clean += LEFT_OUT;
        rest = &rest[before + secret..];
    }
    clean + rest
}

/// Where the first secret begins, and how long it is.
fn next(text: &str) -> Option<(usize, usize)> {
    let found = [
        pem(text),
        token(text),
        authorization(text),
        userinfo(text),
        encoded(text),
    ];
    found.into_iter().flatten().min()
}

fn is_of_token(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.' | '=' | '+' | '/' | '~')
}

fn run(text: &str) -> usize {
    text.find(|character| !is_of_token(character))
        .unwrap_or(text.len())
}

fn pem(text: &str) -> Option<(usize, usize)> {
    let start = text.find(PEM)?;
    let body = &text[start..];
    // Of one that is cut off nothing is left in its string.
    let body = &body[..body.find('"').unwrap_or(body.len())];
    let end = body.find(PEM_END).map(|end| end + PEM_END.len());
    let end = end.map(|end| {
        end + body[end..]
            .find("-----")
            .map_or(body.len() - end, |tail| tail + 5)
    });
    Some((start, end.unwrap_or(body.len())))
}

fn token(text: &str) -> Option<(usize, usize)> {
    let mut starts = text.match_indices(TOKEN);
    starts.find_map(|(start, _)| {
        let is_inside = text[..start].chars().next_back().is_some_and(is_of_token);
        let length = run(&text[start..]);
        (!is_inside && length >= SHORTEST_TOKEN).then_some((start, length))
    })
}

fn encoded(text: &str) -> Option<(usize, usize)> {
    let start = text.find(PEM_AS_BASE64)?;
    Some((start, run(&text[start..])))
}

/// `Authorization: Bearer …`, also `Basic`.
fn authorization(text: &str) -> Option<(usize, usize)> {
    let schemes = ["Bearer ", "bearer ", "Basic ", "basic "];
    let found = schemes.iter().flat_map(|scheme| {
        let places = text.match_indices(scheme);
        places.map(|(place, scheme)| place + scheme.len())
    });
    let credentials = found.filter_map(|start| {
        let length = run(&text[start..]);
        (length >= SHORTEST_TOKEN).then_some((start, length))
    });
    credentials.min()
}

/// `https://user:password@host`.
fn userinfo(text: &str) -> Option<(usize, usize)> {
    text.match_indices("://").find_map(|(place, mark)| {
        let start = place + mark.len();
        let ends =
            |character: char| matches!(character, '/' | '?' | '#' | '"' | '\'') || character.is_whitespace();
        let authority = &text[start..];
        let authority = &authority[..authority.find(ends).unwrap_or(authority.len())];
        let at = authority.rfind('@')?;
        let is_clean = authority[..at] == *LEFT_OUT;
        (authority[..at].contains(':') && !is_clean).then_some((start, at))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_keys_and_passwords_go_and_the_rest_stays() {
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2lnbmF0dXJl-_x";
        for (text, expected) in [
            ("nothing to hide", "nothing to hide"),
            (&format!("401 for {token}: wrong"), "401 for <left out>: wrong"),
            (
                &format!("a {{\"token\":\"{token}\"}} b {token}"),
                "a {\"token\":\"<left out>\"} b <left out>",
            ),
            (
                "Authorization: Bearer abcdefghij0123456789abcdef end",
                "Authorization: Bearer <left out> end",
            ),
            ("the bearer of news", "the bearer of news"),
            (
                "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\nafter",
                "<left out>\nafter",
            ),
            (
                "cut off -----BEGIN RSA PRIVATE KEY-----\nMHc",
                "cut off <left out>",
            ),
            (
                "{\"error\":\"-----BEGIN RSA PRIVATE KEY-----\\nMHc\",\"node\":\"a\"}",
                "{\"error\":\"<left out>\",\"node\":\"a\"}",
            ),
            ("key: LS0tLS1CRUdJTiBFQyBQUklWQVRF rest", "key: <left out> rest"),
            (
                "dial https://root:s3cret@10.0.0.1:2379/v3 and https://10.0.0.1:2379/a@b:c",
                "dial https://<left out>@10.0.0.1:2379/v3 and https://10.0.0.1:2379/a@b:c",
            ),
            (
                "heyJude-the-fourth-of-its-name-is-no-token",
                "heyJude-the-fourth-of-its-name-is-no-token",
            ),
        ] {
            assert_eq!(redact(text), expected, "{text}");
            assert_eq!(redact(expected), expected, "{text}");
        }
    }
}
