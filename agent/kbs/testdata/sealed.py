# Opens a sealed secret and makes another of the same secret, by Python's cryptography:
# RFC 7515, RFC 3394, AES-GCM. stdin and stdout are JSON.
import base64, json, os, sys
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap

ES256 = ec.ECDSA(hashes.SHA256())


def decode(s):
    return base64.urlsafe_b64decode(s + "=" * (-len(s) % 4))


def encode(b):
    return base64.urlsafe_b64encode(b).decode().rstrip("=")


given = json.load(sys.stdin)
kek = base64.b64decode(given["kek"])

word, header, payload, signature = given["sealed"].split(".")
assert word == "sealed" and json.loads(decode(header))["alg"] == "ES256"
jwk, raw = json.loads(given["jwk"]), decode(signature)
point = ec.EllipticCurvePublicNumbers(
    int.from_bytes(decode(jwk["x"]), "big"), int.from_bytes(decode(jwk["y"]), "big"), ec.SECP256R1())
rs = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
point.public_key().verify(rs, f"{header}.{payload}".encode(), ES256)
secret = json.loads(decode(payload))
key = aes_key_unwrap(kek, base64.b64decode(secret["encrypted_key"]))
plain = AESGCM(key).decrypt(base64.b64decode(secret["iv"]), base64.b64decode(secret["encrypted_data"]), None)

key, iv = os.urandom(32), os.urandom(12)
std = lambda b: base64.b64encode(b).decode()
payload = encode(json.dumps({
    "version": "0.1.0", "type": "envelope", "provider": "kbs", "provider_settings": {},
    "annotations": {"key_wrap": "A256KW"}, "key_id": given["key_id"], "wrap_type": "A256GCM",
    "encrypted_key": std(aes_key_wrap(kek, key)), "iv": std(iv), "encrypted_data": std(AESGCM(key).encrypt(iv, plain, None)),
}).encode())
header = encode(json.dumps({"alg": "ES256", "kid": given["kid"]}).encode())
private = ec.generate_private_key(ec.SECP256R1())
r, s = utils.decode_dss_signature(private.sign(f"{header}.{payload}".encode(), ES256))
signature = encode(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
n = private.public_key().public_numbers()
jwk = {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": encode(n.x.to_bytes(32, "big")), "y": encode(n.y.to_bytes(32, "big"))}
json.dump({"secret": plain.decode(), "sealed": f"sealed.{header}.{payload}.{signature}", "jwk": json.dumps(jwk)}, sys.stdout)
