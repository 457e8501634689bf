-- A key of tokens.

INSERT INTO referral.token_key (id, secret)
    VALUES ('k1', sha256('upgrade'::bytea));
