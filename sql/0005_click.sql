-- Copyright (C) The nginx referral module authors
--
-- What a person reads.  The view runs with the rights of its owner: who may
-- read it sees no column beyond these.

BEGIN;

SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE referral_owner;

CREATE VIEW referral.click AS
    SELECT occurred_at AS time,
           code,
           verdict,
           via,
           country,
           city,
           ip,
           host || path AS page,
           referer_host AS referer,
           source,
           kind,
           browser,
           os,
           device,
           user_agent,
           language,
           signals,
           args,
           destination,
           id,
           code_id,
           program_id,
           referrer_id
        FROM referral.interaction
        WHERE type = 'click';

COMMENT ON VIEW referral.click IS
    'Clicks as a person reads them; bound "time" in every query';

GRANT SELECT ON referral.click TO referral_analyst;

INSERT INTO referral.schema_migration (version, name) VALUES (5, 'click');

COMMIT;
