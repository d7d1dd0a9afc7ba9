//! What attackers do to tokens, each against the embedded issuer and against an external one: refused, for the reason
//! that is meant.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use crate::external_issuer::issuer::{Forger, Key, TestIssuer, embedded, encode, sign, with};
use crate::harness::client::Reply;
use crate::harness::server::TestServer;

struct Fixture {
    server: TestServer,
    /// Of the embedded issuer, and of an external one.
    forgers: [Forger; 2],
    external: String,
}

async fn fixture() -> Fixture {
    let issuer = TestIssuer::start().await;
    let server = TestServer::start_with(|config| config.issuers = vec![issuer.settings()]).await;
    let fixture = Fixture { forgers: [embedded(&server), issuer.forger], server, external: issuer.url };
    // What follows is refused for what it is, and for nothing else.
    for forger in &fixture.forgers {
        fixture.call(&forger.token()).await.expect_status(200);
    }
    fixture
}

impl Fixture {
    async fn call(&self, token: &str) -> Reply {
        self.server.admin().with_token(token).get("/api/machines").await
    }

    async fn refuses(&self, token: &str, why: &str) {
        let reply = self.call(token).await;
        let challenge = reply.headers.get("www-authenticate").cloned();
        let message = reply.expect_error(401, "Unauthorized");
        assert!(message.contains(why), "{message}\n{token}");
        assert!(challenge.unwrap().to_str().unwrap().contains("error=\"invalid_token\""));
    }
}

#[tokio::test]
async fn alg_none() {
    let fixture = fixture().await;
    for forger in &fixture.forgers {
        for algorithm in ["none", "None", "NONE", "nOnE", ""] {
            let header = with(&forger.header, "alg", algorithm).to_string();
            let body = format!("{}.{}", encode(&header), encode(&forger.claims.to_string()));
            fixture.refuses(&format!("{body}."), "not signed with RS256").await;
            fixture.refuses(&format!("{body}.AAAA"), "not signed with RS256").await;
            fixture.refuses(&body, "no token of this server").await;
        }
        let body = format!("{}.{}", encode(&forger.header.to_string()), encode(&forger.claims.to_string()));
        fixture.refuses(&format!("{body}."), "signature is wrong").await;
        fixture.refuses(&forger.with_header("alg", Value::Null), "names no algorithm").await;
        fixture.refuses(&forger.with_header("alg", json!(["RS256"])), "names no algorithm").await;
    }
}

#[tokio::test]
async fn hmac_with_the_public_key_as_secret() {
    let fixture = fixture().await;
    for forger in &fixture.forgers {
        let modulus = forger.key.jwk["n"].as_str().unwrap();
        let secrets = [
            modulus.as_bytes().to_vec(),
            URL_SAFE_NO_PAD.decode(modulus).unwrap(),
            forger.key.pem.clone().into_bytes(),
            forger.key.jwk.to_string().into_bytes(),
            Vec::new(),
        ];
        for (name, algorithm) in
            [("HS256", Algorithm::HS256), ("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)]
        {
            let header = with(&forger.header, "alg", name).to_string();
            for secret in &secrets {
                let key = EncodingKey::from_secret(secret);
                let token = sign(&header, &forger.claims.to_string(), &key, algorithm);
                fixture.refuses(&token, "not signed with RS256").await;
            }
        }
    }
}

#[tokio::test]
async fn another_algorithm_with_the_right_key() {
    let fixture = fixture().await;
    for forger in &fixture.forgers {
        for (name, algorithm) in [("PS256", Algorithm::PS256), ("RS512", Algorithm::RS512)] {
            let (header, claims) = (with(&forger.header, "alg", name), forger.claims.to_string());
            let token = sign(&header.to_string(), &claims, &forger.key.private, algorithm);
            fixture.refuses(&token, "not signed with RS256").await;
            // The header says the pinned one.
            let token = sign(&forger.header.to_string(), &claims, &forger.key.private, algorithm);
            fixture.refuses(&token, "signature is wrong").await;
        }
    }
}

#[tokio::test]
async fn unknown_kid() {
    let fixture = fixture().await;
    for forger in &fixture.forgers {
        for kid in ["other", "", "../../issuer/key", "one\u{0}", "' OR 1=1"] {
            fixture.refuses(&forger.with_header("kid", kid), "key is unknown").await;
        }
        fixture.refuses(&forger.with_header("kid", json!(1)), "id of its key").await;
        fixture.refuses(&forger.with_header("kid", "a".repeat(257)), "id of its key").await;
        let token = forger.with_header("kid", Value::Null);
        let message = fixture.call(&token).await.expect_error(401, "Unauthorized");
        assert!(message.contains("key is unknown") || message.contains("names no key"), "{message}");
    }
}

#[tokio::test]
async fn duplicate_kid() {
    let fixture = fixture().await;
    for forger in &fixture.forgers {
        let kid = forger.header["kid"].as_str().unwrap();
        for header in [
            format!("{{\"alg\":\"RS256\",\"kid\":\"other\",\"kid\":\"{kid}\"}}"),
            format!("{{\"alg\":\"RS256\",\"kid\":\"{kid}\",\"k\\u0069d\":\"other\"}}"),
        ] {
            fixture
                .refuses(&forger.sign_text(&header, &forger.claims.to_string()), "no token of this server")
                .await;
        }
    }
    // Two keys of one id in what an issuer publishes: neither counts. The embedded issuer names its keys by what they are.
    let issuer = TestIssuer::start().await;
    let twin = Key::new("one");
    let third = Key::new("three");
    issuer.publish(&[&issuer.forger.key.jwk, &twin.jwk, &third.jwk]);
    let server = TestServer::start_with(|config| config.issuers = vec![issuer.settings()]).await;
    for key in [&issuer.forger.key, &twin] {
        let (header, claims) = (issuer.forger.header.to_string(), issuer.forger.claims.to_string());
        let client = server.admin().with_token(sign(&header, &claims, &key.private, Algorithm::RS256));
        let message = client.get("/api/machines").await.expect_error(401, "Unauthorized");
        assert!(message.contains("key is unknown"), "{message}");
    }
    let header = with(&issuer.forger.header, "kid", "three").to_string();
    let token = sign(&header, &issuer.forger.claims.to_string(), &third.private, Algorithm::RS256);
    server.admin().with_token(token).get("/api/machines").await.expect_status(200);
}

#[tokio::test]
async fn embedded_jwk() {
    let fixture = fixture().await;
    let own = Key::new("own");
    for forger in &fixture.forgers {
        for (name, value) in [
            ("jwk", own.jwk.clone()),
            ("jku", json!(format!("{}/keys", fixture.external))),
            ("x5u", json!("https://evil.example/chain.pem")),
            ("x5c", json!(["MIIB"])),
        ] {
            let header = with(&forger.header, name, value).to_string();
            let token = sign(&header, &forger.claims.to_string(), &own.private, Algorithm::RS256);
            fixture.refuses(&token, "signature is wrong").await;
        }
    }
}

#[tokio::test]
async fn wrong_typ() {
    let fixture = fixture().await;
    for forger in &fixture.forgers {
        for typ in [json!("id+jwt"), json!("logout+jwt"), json!("dpop+jwt"), json!(""), json!(1)] {
            fixture.refuses(&forger.with_header("typ", typ), "grants no access").await;
        }
        for typ in [Value::Null, json!("JWT"), json!("at+jwt"), json!("application/at+jwt")] {
            fixture.call(&forger.with_header("typ", typ)).await.expect_status(200);
        }
        for claim in ["nonce", "at_hash", "c_hash"] {
            fixture.refuses(&forger.with_claim(claim, "x"), "grants no access").await;
        }
    }
}

#[tokio::test]
async fn critical_extensions_and_other_encodings() {
    let fixture = fixture().await;
    for forger in &fixture.forgers {
        fixture.refuses(&forger.with_header("crit", json!(["exp"])), "critical").await;
        fixture.refuses(&forger.with_header("crit", json!([])), "critical").await;
        fixture.refuses(&forger.with_header("b64", false), "not encoded").await;
        fixture.refuses(&forger.with_header("zip", "DEF"), "compressed").await;
        fixture.refuses(&forger.with_claim("cnf", json!({"jkt": "x"})), "bound to a key").await;
    }
}

#[tokio::test]
async fn expired() {
    let fixture = fixture().await;
    let now = chrono::Utc::now().timestamp();
    for forger in &fixture.forgers {
        for exp in [now - 1, 0] {
            fixture.refuses(&forger.with_claim("exp", exp), "has expired").await;
        }
        for exp in [json!("9999999999"), json!(1e300), json!(-1), json!(1.5), json!(u64::MAX), json!([])] {
            fixture.refuses(&forger.with_claim("exp", exp), "no time").await;
        }
        fixture.refuses(&forger.with_claim("exp", Value::Null), "never expires").await;
    }
}

#[tokio::test]
async fn future() {
    let fixture = fixture().await;
    let now = chrono::Utc::now().timestamp();
    for forger in &fixture.forgers {
        for claim in ["nbf", "iat"] {
            fixture.refuses(&forger.with_claim(claim, now + 600), "not valid yet").await;
            fixture.refuses(&forger.with_claim(claim, "0"), "no time").await;
            fixture.call(&forger.with_claim(claim, now + 30)).await.expect_status(200);
        }
    }
}

#[tokio::test]
async fn wrong_issuer_with_the_same_key() {
    let issuer = TestIssuer::start().await;
    let mut other = TestIssuer::start().await;
    // The other one publishes the same key, under the same name.
    other.publish(&[&issuer.forger.key.jwk]);
    let issuers = vec![issuer.settings(), other.settings()];
    let server = TestServer::start_with(|config| config.issuers = issuers).await;
    let own = embedded(&server);
    let fixture = Fixture { external: issuer.url.clone(), forgers: [own, issuer.forger], server };
    let [own, first] = &fixture.forgers;
    for iss in [json!("https://evil.example"), json!(""), json!([issuer.url]), Value::Null] {
        fixture.refuses(&own.with_claim("iss", iss.clone()), "another issuer").await;
        fixture.refuses(&first.with_claim("iss", iss), "key is unknown").await;
    }
    // The embedded key in the external issuer's name, and the other way around.
    fixture.refuses(&own.with_claim("iss", issuer.url.as_str()), "key is unknown").await;
    fixture.refuses(&first.with_claim("iss", own.claims["iss"].clone()), "key is unknown").await;
    fixture.refuses(&first.with_claim("iss", format!("{}/", issuer.url)), "key is unknown").await;
    // A key that both have: each token counts as its own issuer's, and the other's own key is none of the first.
    fixture.call(&first.with_claim("iss", other.url.as_str())).await.expect_status(200);
    other.forger.header["kid"] = json!("one");
    fixture.refuses(&other.forger.with_claim("iss", issuer.url.as_str()), "signature is wrong").await;
}

#[tokio::test]
async fn wrong_audience() {
    let fixture = fixture().await;
    for (forger, right) in
        fixture.forgers.iter().zip(["https://api.securitycenter.microsoft.com", "api://cordon"])
    {
        for aud in [json!("https://graph.microsoft.com"), json!(["a", "b"])] {
            let message = fixture.call(&forger.with_claim("aud", aud)).await.expect_error(403, "Forbidden");
            assert!(message.contains("accepts the audiences") && message.contains(right), "{message}");
        }
        fixture
            .call(&forger.with_claim("aud", json!(["a", right, format!("{right}/")])))
            .await
            .expect_status(200);
        for aud in [Value::Null, json!([]), json!(1), json!([1]), json!({"a": "b"}), json!("")] {
            fixture.refuses(&forger.with_claim("aud", aud), "names no audience").await;
        }
    }
    // The vendor's names are the embedded issuer's: a token that another issuer made for the vendor is not for us.
    let external = fixture.forgers[1].with_claim("aud", "https://api.securitycenter.microsoft.com");
    fixture.call(&external).await.expect_error(403, "Forbidden");
}

#[tokio::test]
async fn huge_token() {
    let fixture = fixture().await;
    for forger in &fixture.forgers {
        let token = forger.with_claim("pad", "a".repeat(16 * 1024));
        fixture.refuses(&token, "too long").await;
        fixture.call(&forger.with_claim("pad", "a".repeat(8 * 1024))).await.expect_status(200);
    }
}

#[tokio::test]
async fn duplicate_claims_and_deep_ones() {
    let fixture = fixture().await;
    for forger in &fixture.forgers {
        let (header, claims) = (forger.header.to_string(), forger.claims.to_string());
        for (name, value) in [("exp", "9999999999"), ("roles", "[]"), ("unknown", "1,\"unknown\":1")] {
            let twice = claims.replacen('{', &format!("{{\"{name}\":{value},"), 1);
            fixture.refuses(&forger.sign_text(&header, &twice), "no token of this server").await;
        }
        let nested = claims.replacen('{', "{\"a\":{\"b\":1,\"b\":2},", 1);
        fixture.refuses(&forger.sign_text(&header, &nested), "no token of this server").await;
        let deep = format!("{{\"a\":{}{},", "[".repeat(3000), "]".repeat(3000));
        let deep = claims.replacen('{', &deep, 1);
        fixture.refuses(&forger.sign_text(&header, &deep), "no token of this server").await;
        for claims in ["[]", "1", "null", "", "{} {}", "{\"exp\":"] {
            fixture.refuses(&forger.sign_text(&header, claims), "no token of this server").await;
        }
    }
}

#[tokio::test]
async fn keys_of_others() {
    let fixture = fixture().await;
    let [first, second] = &fixture.forgers;
    for (forger, other) in [(first, second), (second, first)] {
        let (header, claims) = (forger.header.to_string(), forger.claims.to_string());
        let token = sign(&header, &claims, &other.key.private, Algorithm::RS256);
        fixture.refuses(&token, "signature is wrong").await;
    }
}

#[tokio::test]
async fn a_signature_has_one_spelling() {
    let fixture = fixture().await;
    for forger in &fixture.forgers {
        let token = forger.token();
        let (body, signature) = token.rsplit_once('.').unwrap();
        for signature in [format!("{signature}="), format!("{signature}."), format!(" {signature}")] {
            fixture.refuses(&format!("{body}.{signature}"), "no token of this server").await;
        }
        // 256 bytes leave four bits unused in the last letter.
        let (rest, last) = signature.split_at(signature.len() - 1);
        let next = char::from(last.as_bytes()[0] + 1);
        fixture.refuses(&format!("{body}.{rest}{next}"), "no token of this server").await;
        fixture.refuses(&format!("{token}A"), "signature is wrong").await;
    }
}
